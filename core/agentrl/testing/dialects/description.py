"""The part of a dialect's suite about what it says of itself in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from agentrl.gateway.contract import Described
from agentrl.gateway.routes import shown_path
from agentrl.testing.dialects.bench import Bench, DialectSuite
from agentrl.testing.dialects.reading import UNKNOWN

__all__ = ["Description"]

_REFERENCE = "#/components/schemas/"
_NOT_OF_ITS_TYPE = [[["x"]]]
_OF_SOME_TYPE: tuple[Any, ...] = (_NOT_OF_ITS_TYPE, True, 1, 0.5, "x", {"x": 1})
_OTHERS = (
    "guided_json",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "length_penalty",
    "use_beam_search",
    "functions",
    "function_call",
    "audio",
    "background",
    "conversation",
)
"""Fields of other servers, or of APIs that are not served as they are."""


class Description(DialectSuite):
    """Tests of ``describe``."""

    def test_it_describes_each_of_its_routes_and_nothing_else(self, bench: Bench) -> None:
        paths = self._described(bench)["paths"]
        told = {(path, method) for path, methods in paths.items() for method in methods}
        served = {(shown_path(route), method.lower()) for route in bench.dialect.routes for method in route.methods}
        assert told == served, f"described, and not served: {told - served}; served, and not described: {served - told}"
        for path, methods in paths.items():
            for method, operation in methods.items():
                error = operation.get("responses", {}).get("default", {}).get("content")
                assert error, f"{method} {path} does not say, as `default`, how errors look"

    def test_every_reference_in_its_description_leads_somewhere(self, bench: Bench) -> None:
        described = self._described(bench)
        schemas = described.get("components", {}).get("schemas", {})
        for reference in _references(described):
            assert reference.startswith(_REFERENCE), f"{reference!r} is no reference to a schema of its own"
            assert reference.removeprefix(_REFERENCE) in schemas, f"there is no schema {reference!r}"

    def test_the_fields_that_it_describes_are_those_that_it_reads(self, bench: Bench) -> None:
        schema = self._request_schema(bench)
        fields, body = schema.get("properties", {}), self.asks[0]
        for ask in self.asks:
            assert set(ask) <= set(fields), f"it reads {set(ask) - set(fields)}, and does not describe them"
        required = set(schema.get("required", ()))
        assert required <= set(body), f"{required - set(body)} are described as required, and a request does without"
        if not self.strict:
            return
        assert schema.get("additionalProperties") is False, "unknown fields are refused, and it says otherwise"
        unknown = bench.refusal({**body, UNKNOWN: "x"})
        for name in fields:
            error = bench.refusal({**body, name: _NOT_OF_ITS_TYPE})
            if error is not None and unknown is not None and unknown.param == UNKNOWN:
                same = (error.param, error.code) == (name, unknown.code) and name not in body
                told = str(error).replace(name, UNKNOWN).partition("=")[0] == str(unknown).partition("=")[0]
                assert not (same and told), f"it describes {name!r}, and refuses it as a field that there is not"
        for name in sorted({*_OTHERS, *_fields_of_sdks()} - set(fields)):
            for value in _OF_SOME_TYPE:
                error = bench.refusal({**body, name: value})
                assert error is not None, f"it takes the field {name!r}, and does not describe it"

    def _described(self, bench: Bench) -> Mapping[str, Any]:
        if not isinstance(bench.dialect, Described):
            pytest.fail("it does not describe what it serves: write `describe` (agentrl.gateway.contract.Described)")
        return bench.dialect.describe()

    def _request_schema(self, bench: Bench) -> Mapping[str, Any]:
        described = self._described(bench)
        operation = described["paths"][shown_path(bench.route)]["post"]
        schema: Mapping[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
        while "$ref" in schema:
            schema = described["components"]["schemas"][schema["$ref"].removeprefix(_REFERENCE)]
        return schema


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            if name == "$ref" and isinstance(each, str):
                yield each
            else:
                yield from _references(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _references(each)


def _fields_of_sdks() -> set[str]:
    """The fields that the SDK of OpenAI sends in any of its protocols."""
    from openai.types import completion_create_params as completions
    from openai.types.chat import completion_create_params as chat
    from openai.types.responses import response_create_params as responses

    kinds = (
        completions.CompletionCreateParamsBase,
        chat.CompletionCreateParamsBase,
        responses.ResponseCreateParamsBase,
    )
    return {name for kind in kinds for name in kind.__annotations__}
