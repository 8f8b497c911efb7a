"""The models of a session: ``GET /v1/models`` and ``GET /v1/models/{name}``, in the shapes that clients read.

Any model name is the policy, so every model that is asked for exists, and the list holds the session's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Completion, Event, ModelRequest, Reply, Route, WireRequest
from agentrl.gateway.dialects.description import OPENAI_ERROR, open_object, operation, ref
from agentrl.gateway.dialects.overrides import apply_override
from agentrl.gateway.dialects.writing import openai_refusal, written

__all__ = ["Models"]

_LIST = Route("/models", ("GET",))
_ONE = Route("/models/{name:path}", ("GET",))
_LONG_AGO = "1970-01-01T00:00:00Z"


class Models:
    """The dialect of the list of models, for clients of the OpenAI and the Anthropic APIs, and for Codex."""

    routes = (_LIST, _ONE)

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Apply ``rollout.override``, which changes nothing here; see ``Dialect.override``."""
        return apply_override(body, override)

    def parse(self, request: WireRequest) -> Reply:
        """Answer; see ``Dialect.parse``."""
        shape = _anthropic if "anthropic-version" in request.headers else _openai
        name, length = request.settings.model, request.context_length
        if request.route is _ONE:
            return Reply(200, written(shape(request.parameters["name"], length)))
        listed = [shape(name, length)]
        if shape is _anthropic:
            return Reply(200, written({"data": listed, "has_more": False, "first_id": name, "last_id": name}))
        return Reply(200, written({"object": "list", "data": listed, "models": [_codex(name, length)]}))

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        """Never called: no request goes to the model."""
        raise NotImplementedError

    def stream(self, request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]) -> Reply:
        """Never called: no request goes to the model."""
        raise NotImplementedError

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error; see ``Dialect.refuse``."""
        return openai_refusal(error)

    def describe(self) -> Mapping[str, Any]:
        """Say what is served; see ``Described.describe``."""
        return _DESCRIPTION


_MODEL = open_object({"id": {"type": "string"}}, ["id"])
_VERSION = {
    "name": "anthropic-version",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "Whatever it is, the answer has the shape of the Anthropic API.",
}
_DESCRIPTION: Mapping[str, Any] = {
    "paths": {
        "/models": {"get": {**operation("List the session's model", "Models"), "parameters": [_VERSION]}},
        "/models/{name}": {"get": {**operation("Read about a model", "Model"), "parameters": [_VERSION]}},
    },
    "components": {
        "schemas": {
            "Model": _MODEL,
            "Models": open_object({"data": {"type": "array", "items": ref("Model")}}, ["data"]),
            "Error": OPENAI_ERROR,
        }
    },
}


def _openai(name: str, length: int | None) -> dict[str, Any]:
    """With the length of the context under the names that open servers give it."""
    lengths = {} if length is None else {"max_model_len": length, "context_length": length, "context_window": length}
    return {"id": name, "object": "model", "created": 0, "owned_by": "agentrl", **lengths}


def _anthropic(name: str, length: int | None) -> dict[str, Any]:
    lengths = {} if length is None else {"max_input_tokens": length, "max_tokens": length}
    return {"id": name, "type": "model", "display_name": name, "created_at": _LONG_AGO, **lengths}


def _codex(name: str, length: int | None) -> dict[str, Any]:
    """All that Codex needs to know of a model."""
    return {
        "slug": name,
        "display_name": name,
        "description": None,
        "default_reasoning_level": None,
        "supported_reasoning_levels": [],
        "shell_type": "default",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0,
        "upgrade": None,
        "base_instructions": "You are a coding agent. Work on the user's files with the tools that you are given.",
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
        "supports_parallel_tool_calls": True,
        "context_window": length,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
    }
