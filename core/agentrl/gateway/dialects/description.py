"""How dialects describe themselves in the gateway's OpenAPI document: pieces that several need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["OPENAI_ERROR", "closed", "either", "levels", "open_object", "operation", "ref", "whole_number"]

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}

OPENAI_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": TEXT,
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
"""An error as the OpenAI APIs write it."""


def ref(name: str) -> Schema:
    """A reference to a schema of the dialect's own."""
    return {"$ref": f"#/components/schemas/{name}"}


def either(*schemas: Schema) -> Schema:
    """What matches any of ``schemas``."""
    return {"anyOf": list(schemas)}


def levels(*names: str) -> Schema:
    """One of some texts."""
    return {"enum": list(names)}


def whole_number(least: int, most: int | None = None) -> Schema:
    """A whole number from ``least`` to ``most``."""
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def closed(properties: Mapping[str, Schema], required: Sequence[str] = (), *, nullable: bool = False) -> Schema:
    """An object that has no other fields; those that are not required may be null where ``nullable``."""
    fields = {
        name: either(schema, {"type": "null"}) if nullable and name not in required else schema
        for name, schema in properties.items()
    }
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def open_object(properties: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    """An object that may have other fields."""
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def operation(summary: str, answer: str, *, request: str | None = None, streams: bool = False) -> Schema:
    """An operation with JSON of the schema ``request`` in its body, answered by JSON of the schema ``answer``."""
    content: dict[str, Any] = {"application/json": {"schema": ref(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": TEXT}
    body = {"required": True, "content": {"application/json": {"schema": ref(request)}}} if request else None
    return {
        "summary": summary,
        **({"requestBody": body} if body else {}),
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": {"description": "A refusal.", "content": {"application/json": {"schema": ref("Error")}}},
        },
    }
