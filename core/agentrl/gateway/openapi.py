"""``GET /openapi.json``: what is served, as an OpenAPI 3.1 document.

Dialects and resources describe their own routes. What the gateway does for all of them is added here: credentials,
parameters of paths, and the errors that any request may meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Described, Reply, Route
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.resource import Resource, ResourceRequest
from agentrl.gateway.routes import Owner, parameters_of, shown_path
from agentrl.plugins.entries import core_version

__all__ = ["Document", "document"]

_ERRORS = {
    400: "The request cannot be read, or asks for something that is not granted here.",
    401: "The credentials are missing or unknown, or the key is not that of the session.",
    404: "There is nothing here, or the session is closed.",
    408: "The request did not arrive in time.",
    409: "The request contradicts the state of what it is about.",
    413: "The body is too large.",
    429: "Too much is under way; `retry-after` says in how many seconds to ask again.",
    431: "The header is too large.",
    500: "A fault of the gateway.",
    503: "The model cannot be asked at present, or its engine failed.",
}
_AT_429 = {"retry-after": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_REFERENCE = "#/components/schemas/"

_UNTOLD = {"responses": {"200": {"description": "An answer."}}}
"""What is said of a route that its owner does not describe."""

_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}]
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The session's key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The session's key."},
}
_SERVERS = [
    {"url": "/v1", "description": "The session is the one whose key a request has."},
    {
        "url": "/{capture}/v1",
        "description": "The session's own base URL. On the machine itself the capture token in it opens the session "
        "for calls to the model without a key.",
        "variables": {"capture": {"default": "capture", "description": "The capture token of the session."}},
    },
]


class Document(Resource):
    """Serves the document. It says nothing secret, and needs no credentials."""

    routes = (Route("/openapi.json", ("GET",)),)

    def __init__(self, owners: Callable[[], Sequence[Owner]]) -> None:
        """``owners`` gives all that is served, this included, once it is asked for."""
        self._owners = owners
        self._written: bytes | None = None

    async def answer(self, request: ResourceRequest) -> Reply:
        """Give the document."""
        if self._written is None:
            self._written = orjson.dumps(document(self._owners()))
        return Reply(200, self._written)

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error as the chat completions API does."""
        return ChatCompletions().refuse(error)

    def describe(self) -> Mapping[str, Any]:
        """Its part of the document."""
        operation = {
            "summary": "This document",
            "operationId": "openapi",
            "security": [],
            "responses": {"200": {"description": "An OpenAPI 3.1 document.", "content": _json({"type": "object"})}},
        }
        return {"paths": {"/openapi.json": {"get": operation}}}


def document(owners: Sequence[Owner]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all that ``owners`` serve, as plain JSON."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    schemes: dict[str, Any] = dict(_SCHEMES)
    names: set[str] = set()
    for owner in owners:
        name = _unused(type(owner).__name__, names)
        described = _described(owner, name)
        schemes |= described["schemes"]
        schemas |= {f"{name}.{each}": schema for each, schema in described["schemas"].items()}
        for route, method in _methods(owner):
            path = shown_path(route)
            given = described["paths"].get(path, {}).get(method) or {
                "responses": {"200": {"description": "An answer."}}
            }
            paths.setdefault(path, {})[method] = _operation(given, name, route, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentrl gateway",
            "version": core_version(),
            "description": "A model behind the protocols that agents speak. Every token that is sampled is recorded. "
            "`HEAD` is taken wherever `GET` is, and `OPTIONS` everywhere.",
        },
        "servers": _SERVERS,
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": schemes},
    }


def _unused(name: str, names: set[str]) -> str:
    number, unused = 1, name
    while unused in names:
        number += 1
        unused = f"{name}{number}"
    names.add(unused)
    return unused


def _described(owner: Owner, name: str) -> dict[str, Any]:
    """The paths and schemas of ``owner``, whose schemas are called by ``name`` too in references."""
    given = owner.describe() if isinstance(owner, Described) else {}
    components = given.get("components", {})
    return {
        "paths": _renamed(given.get("paths", {}), name),
        "schemas": _renamed(components.get("schemas", {}), name),
        "schemes": components.get("securitySchemes", {}),
    }


def _renamed(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _reference(each, name) if key == "$ref" else _renamed(each, name) for key, each in value.items()}
    return [_renamed(each, name) for each in value] if isinstance(value, list | tuple) else value


def _reference(value: Any, name: str) -> Any:
    if isinstance(value, str) and value.startswith(_REFERENCE):
        return f"{_REFERENCE}{name}.{value.removeprefix(_REFERENCE)}"
    return _renamed(value, name)  # It is the name of a property.


def _methods(owner: Owner) -> Iterator[tuple[Route, str]]:
    return ((route, method.lower()) for route in owner.routes for method in route.methods)


def _operation(given: Mapping[str, Any], name: str, route: Route, method: str) -> dict[str, Any]:
    """What an owner says of a method on a route, and what the gateway adds."""
    operation = dict(given)
    responses = dict(operation.pop("responses", {}))
    error = responses.pop("default", None)
    parameters = [*operation.pop("parameters", []), *_parameters(route, operation)]
    security = operation.pop("security", _SECURITY)
    for status, description in _ERRORS.items():
        if str(status) not in responses:
            content = {} if error is None else {"content": error["content"]}
            headers = {"headers": _AT_429} if status == 429 else {}
            responses[str(status)] = {"description": description, **headers, **content}
    return {
        "operationId": re.sub(r"\W+", "_", f"{method}{shown_path(route)}").strip("_"),
        "tags": [name],
        **operation,
        **({"parameters": parameters} if parameters else {}),
        "security": security,
        "responses": responses,
    }


def _parameters(route: Route, operation: Mapping[str, Any]) -> list[dict[str, Any]]:
    described = {each["name"] for each in operation.get("parameters", ()) if each.get("in") == "path"}
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1} | ({} if several else {"pattern": "^[^/]+$"}),
        }
        for name, several in parameters_of(route).items()
        if name not in described
    ]


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
