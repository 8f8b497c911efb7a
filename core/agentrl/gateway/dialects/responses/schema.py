"""What the Responses API looks like, for the gateway's OpenAPI document; it is read in ``request`` and ``items``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.gateway.dialects.chat_schema import SAMPLING, STREAM_OPTIONS
from agentrl.gateway.dialects.description import (
    OPENAI_ERROR,
    closed,
    either,
    levels,
    open_object,
    operation,
    ref,
    whole_number,
)
from agentrl.gateway.dialects.fields import LEVELS, NO_EFFECT
from agentrl.gateway.dialects.responses.request import ALSO_NO_EFFECT, INCLUDABLE

__all__ = ["DESCRIPTION"]

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = whole_number(0)
_NULL: Schema = {"type": "null"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _noted(schema: Schema, about: str) -> Schema:
    return {**schema, "description": about}


def _or_null(schema: Schema) -> Schema:
    return either(schema, _NULL)


def _asked(properties: Mapping[str, Schema]) -> Schema:
    """An object of a request, whose fields may be null or left out, and that has no others."""
    return closed(properties, nullable=True)


def _whole(properties: Mapping[str, Schema]) -> Schema:
    """An object that has all of these fields and no others."""
    return closed(properties, list(properties))


_PART = either(
    open_object({"type": levels("input_text", "output_text", "text"), "text": _TEXT}, ["type", "text"]),
    open_object({"type": levels("refusal"), "refusal": _TEXT}, ["type", "refusal"]),
)
_CONTENT = either(_TEXT, _list(_PART))
_THOUGHTS = _or_null(_list(open_object({"text": _TEXT}, ["text"])))
_ITEM = either(
    open_object(
        {
            "type": levels("message"),
            "role": levels("user", "system", "developer", "assistant"),
            "content": _CONTENT,
        },
        ["role", "content"],
    ),
    open_object(
        {
            "type": levels("reasoning"),
            "summary": _THOUGHTS,
            "content": _THOUGHTS,
            "encrypted_content": _noted(_or_null(_TEXT), "Stands for thinking that this session has recorded."),
        },
        ["type"],
    ),
    open_object(
        {"type": levels("function_call"), "call_id": _TEXT, "name": _TEXT, "arguments": _TEXT},
        ["type", "call_id", "name", "arguments"],
    ),
    open_object(
        {"type": levels("custom_tool_call"), "call_id": _TEXT, "name": _TEXT, "input": _TEXT},
        ["type", "call_id", "name", "input"],
    ),
    open_object(
        {
            "type": levels("function_call_output", "custom_tool_call_output"),
            "call_id": _TEXT,
            "output": _CONTENT,
        },
        ["type", "call_id", "output"],
    ),
    open_object({"type": levels("item_reference"), "id": _TEXT}, ["id"]),
    _noted(
        open_object({"type": {"type": "string", "pattern": "_call(_output)?$"}}, ["type"]),
        "What tools that others run have done is left out of the prompt, and counted.",
    ),
)
_NAMED: Schema = {"name": {"type": "string", "minLength": 1}, "description": _or_null(_TEXT)}
_TOOL = either(
    open_object(
        {
            "type": levels("function"),
            **_NAMED,
            "parameters": _or_null({"type": "object"}),
            "strict": _or_null(_FLAG),
        },
        ["type", "name"],
    ),
    open_object(
        {"type": levels("custom"), **_NAMED, "format": _or_null(open_object({"type": _TEXT}))}, ["type", "name"]
    ),
    _noted(open_object({"type": _TEXT}, ["type"]), "Tools that others would run are left out, and counted."),
)
_FORM = either(
    open_object({"type": levels("text", "json_object")}, ["type"]),
    open_object(
        {
            "type": levels("json_schema"),
            "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
            "schema": {"type": "object"},
            "strict": _or_null(_FLAG),
        },
        ["type", "name", "schema"],
    ),
)
_EFFORT = levels(*LEVELS["reasoning_effort"])
_SAMPLED = {name: schema for name, schema in SAMPLING.items() if name not in ("max_tokens", "max_completion_tokens")}
_REQUEST = _asked(
    {
        **_SAMPLED,
        **{name: {} for name in sorted(NO_EFFECT | ALSO_NO_EFFECT)},
        "input": either(_TEXT, _list(ref("Item"))),
        "instructions": _TEXT,
        "model": _TEXT,
        "previous_response_id": _TEXT,
        "store": _noted(_FLAG, "Whether the session keeps the response; true unless it is false."),
        "max_output_tokens": whole_number(1, 2**31 - 1),
        "n": {"const": 1},
        "stream": _FLAG,
        "stream_options": STREAM_OPTIONS,
        "top_logprobs": whole_number(0, 20),
        "include": _list(levels(*INCLUDABLE)),
        "tools": _list(ref("Tool")),
        "tool_choice": either(levels("none", "auto", "required"), open_object({"type": _TEXT}, ["type"])),
        "parallel_tool_calls": _FLAG,
        "text": _asked({"format": _FORM, "verbosity": levels(*LEVELS["verbosity"])}),
        "reasoning": _asked(
            {"effort": _EFFORT, "summary": {}, "generate_summary": {}, "context": _TEXT, "mode": _TEXT}
        ),
        "truncation": _noted({}, "Anything but `disabled` is counted as not granted."),
        "context_management": _noted({}, "Is counted as not granted where it asks for something."),
        "chat_template_kwargs": {"type": "object"},
    }
)
_USAGE = _whole(
    {
        "input_tokens": _COUNT,
        "input_tokens_details": _whole({"cached_tokens": _COUNT, "cache_write_tokens": _COUNT}),
        "output_tokens": _COUNT,
        "output_tokens_details": _whole({"reasoning_tokens": _COUNT}),
        "total_tokens": _COUNT,
    }
)
_OUTPUT = open_object(
    {
        "id": _TEXT,
        "type": levels("message", "reasoning", "function_call", "custom_tool_call"),
        "status": levels("in_progress", "completed", "incomplete"),
    },
    ["id", "type", "status"],
)
_RESPONSE = open_object(
    {
        "id": _TEXT,
        "object": {"const": "response"},
        "created_at": _COUNT,
        "completed_at": _or_null(_COUNT),
        "status": levels("in_progress", "completed", "incomplete"),
        "model": _TEXT,
        "output": _list(_OUTPUT),
        "usage": _or_null(_USAGE),
        "error": {"type": "null"},
        "incomplete_details": _or_null(_whole({"reason": {"const": "max_output_tokens"}})),
    },
    ["id", "object", "created_at", "status", "model", "output", "usage", "error"],
)
_ITEMS = _whole(
    {
        "object": {"const": "list"},
        "data": _list(open_object({"id": _TEXT, "type": _TEXT}, ["id", "type"])),
        "first_id": _or_null(_TEXT),
        "last_id": _or_null(_TEXT),
        "has_more": _FLAG,
    }
)
_DELETED = _whole({"id": _TEXT, "object": {"const": "response"}, "deleted": {"const": True}})
_COUNTED = _whole({"object": {"const": "response.input_tokens"}, "input_tokens": _COUNT})
_PAGE: Mapping[str, Schema] = {
    "order": levels("asc", "desc"),
    "limit": whole_number(1, 100),
    "after": _TEXT,
}


def _asking(operation: Schema, query: Mapping[str, Schema]) -> Schema:
    """An operation with parameters in its query."""
    parameters = [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
    return {**operation, "parameters": parameters}


def _optional(operation: Schema) -> Schema:
    """An operation whose body may be left out."""
    return {**operation, "requestBody": {**operation["requestBody"], "required": False}}


def _only_refused(operation: Schema) -> Schema:
    return {**operation, "responses": {"default": operation["responses"]["default"]}}


DESCRIPTION: Mapping[str, Any] = {
    "paths": {
        "/responses": {
            "post": _optional(operation("Create a response", "Response", request="Request", streams=True)),
        },
        "/responses/input_tokens": {
            "post": _optional(operation("Count the tokens of a request", "Counted", request="Request")),
        },
        "/responses/{response}": {
            "get": _asking(operation("Retrieve a response", "Response"), {"stream": levels("false")}),
            "delete": operation("Delete a response", "Deleted"),
        },
        "/responses/{response}/input_items": {
            "get": _asking(operation("List what a response answers", "Items"), _PAGE),
        },
        "/responses/{response}/cancel": {
            "post": _only_refused(operation("Refuse: nothing is made in the background", "Response")),
        },
    },
    "components": {
        "schemas": {
            "Request": _REQUEST,
            "Item": _ITEM,
            "Tool": _TOOL,
            "Response": _RESPONSE,
            "Items": _ITEMS,
            "Deleted": _DELETED,
            "Counted": _COUNTED,
            "Error": OPENAI_ERROR,
        }
    },
}
"""The part of the document about responses."""
