"""What the Messages API is here, in the terms of OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.gateway.dialects.messages.request import CANNOT_BE_MET, EFFORTS, NO_EFFECT, THINKING

__all__ = ["description"]

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_ANY: Schema = {}


def _object(properties: Mapping[str, Schema], *required: str, closed: bool = True, about: str = "") -> Schema:
    schema: Schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    schema |= {"additionalProperties": False} if closed else {}
    return schema | ({"description": about} if about else {})


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _typed(kind: str, properties: Mapping[str, Schema], *required: str) -> Schema:
    """A block of one type, with notes that have no effect."""
    notes = {"cache_control": _ANY, "citations": _ANY, "parsed_output": _ANY, "caller": _ANY, "toolset_name": _ANY}
    return _object({"type": {"const": kind}, **properties, **notes}, "type", *required)


_TEXTS: Schema = {"anyOf": [_TEXT, _list(_ref("TextBlock"))]}
_TEXT_BLOCK = _typed("text", {"text": _TEXT}, "text")
_TOOL_USE = {"id": _TEXT, "name": _TEXT, "input": {"type": "object"}}
_RESULT = {
    "tool_use_id": _TEXT,
    "content": {"anyOf": [_TEXT, _list({"anyOf": [_ref("TextBlock"), _ref("ToolReference")]}), {"type": "null"}]},
    "is_error": _ANY,
}
_BLOCKS: Mapping[str, Schema] = {
    "TextBlock": _TEXT_BLOCK,
    "ToolReference": _typed("tool_reference", {"tool_name": _TEXT}, "tool_name"),
    "ThinkingBlock": _typed("thinking", {"thinking": _or_null(_TEXT), "signature": _or_null(_TEXT)}),
    "RedactedThinkingBlock": _typed("redacted_thinking", {"data": _or_null(_TEXT)}),
    "ToolUseBlock": _typed("tool_use", _TOOL_USE, *_TOOL_USE),
    "ToolResultBlock": _typed("tool_result", _RESULT, "tool_use_id"),
}


def _message(role: str, *blocks: str) -> Schema:
    content = {"anyOf": [_TEXT, _list({"anyOf": [_ref(block) for block in blocks]})]}
    return _object({"role": {"const": role}, "content": content}, "role", "content", closed=False)


_TOOL: Schema = {
    "anyOf": [
        _object(
            {
                "type": {"enum": ["custom", None]},
                "name": {"type": "string", "minLength": 1},
                "description": _or_null(_TEXT),
                "input_schema": {"type": "object"},
                "strict": _or_null(_FLAG),
                "cache_control": _ANY,
                "eager_input_streaming": _ANY,
                "input_examples": _ANY,
                "defer_loading": _ANY,
                "allowed_callers": _ANY,
            },
            "name",
            "input_schema",
            about="A tool that the client runs.",
        ),
        _object(
            {"type": _TEXT},
            "type",
            closed=False,
            about="A tool that the API defines. Those that its servers would run are left out of the prompt.",
        )
        | {"not": {"required": ["input_schema"]}},
    ]
}
_CHOICE = _object(
    {"type": {"enum": ["auto", "any", "tool", "none"]}, "name": _TEXT, "disable_parallel_tool_use": _or_null(_FLAG)},
    "type",
    closed=False,
)
_FORMAT = _object(
    {"type": {"enum": ["json_schema", "json_object"]}, "schema": {"type": "object"}}, "type", closed=False
)
_CONFIG = _object(
    {"effort": _or_null({"enum": [*EFFORTS]}), "format": _or_null(_FORMAT), "task_budget": _ANY},
    about="The effort is a variable of the chat template, and is counted where the template does not read it.",
)
_THINKING = _object({"type": {"enum": [*THINKING]}, "budget_tokens": _or_null(_COUNT)}, "type", closed=False)
_FIELDS: Mapping[str, Schema] = {
    "messages": {"type": "array", "minItems": 1, "items": _ref("InputMessage")},
    "model": _or_null(_TEXT),
    "max_tokens": {"type": "integer", "minimum": 1, "description": "At most what the context leaves is sampled."},
    "system": _or_null(_TEXTS),
    "tools": _or_null(_list(_TOOL)),
    "tool_choice": _or_null(_CHOICE),
    "stop_sequences": _or_null(_list({"type": "string", "minLength": 1})),
    "stream": _or_null(_FLAG),
    "thinking": _or_null(_THINKING),
    "output_config": _or_null(_CONFIG),
    "output_format": _or_null(_FORMAT),
    "context_management": _or_null(_object({"edits": _list({"type": "object"})}, closed=False)),
    "temperature": _or_null({"type": "number", "minimum": 0}),
    "top_p": _or_null({"type": "number", "minimum": 0, "maximum": 1}),
    "top_k": _or_null({"type": "integer", "minimum": -1}),
    "min_p": _or_null({"type": "number", "minimum": 0}),
    "seed": _or_null({"type": "integer"}),
    "frequency_penalty": _or_null({"type": "number"}),
    "presence_penalty": _or_null({"type": "number"}),
    "repetition_penalty": _or_null({"type": "number"}),
    "logit_bias": _or_null({"type": "object"}),
    "chat_template_kwargs": _or_null({"type": "object"}),
    **{name: {"description": "Has no effect here."} for name in sorted(NO_EFFECT)},
    **{name: {"description": "Cannot be granted, and is counted."} for name in sorted(CANNOT_BE_MET)},
}
_USAGE = _object(
    {
        "input_tokens": _COUNT,
        "output_tokens": _COUNT,
        "cache_creation_input_tokens": _COUNT,
        "cache_read_input_tokens": _COUNT,
    },
    "input_tokens",
    "output_tokens",
)
_REASONS = ["end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "tool_use", "refusal"]
_ANSWER = _object(
    {
        "id": _TEXT,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": _TEXT,
        "content": _list({"anyOf": [_ref("ThinkingBlock"), _ref("TextBlock"), _ref("ToolUseBlock")]}),
        "stop_reason": {"enum": [*_REASONS, None]},
        "stop_sequence": _or_null(_TEXT),
        "usage": _USAGE,
    },
    "id",
    "type",
    "role",
    "model",
    "content",
    "stop_reason",
    "usage",
)
_ERROR = _object(
    {
        "type": {"const": "error"},
        "error": _object({"type": _TEXT, "message": _TEXT}, "type", "message"),
        "request_id": _TEXT,
    },
    "type",
    "error",
    "request_id",
)
_SCHEMAS: Mapping[str, Schema] = {
    **_BLOCKS,
    "InputMessage": {
        "anyOf": [
            _message("user", "TextBlock", "ToolResultBlock"),
            _message("assistant", "TextBlock", "ThinkingBlock", "RedactedThinkingBlock", "ToolUseBlock"),
            _message("system", "TextBlock"),
        ]
    },
    "Request": _object(_FIELDS, "messages", "max_tokens"),
    "CountRequest": _object({**_FIELDS, "max_tokens": _or_null(_COUNT)}, "messages"),
    "Message": _ANSWER,
    "Count": _object({"input_tokens": _COUNT}, "input_tokens"),
    "Error": _ERROR,
}


def description() -> Mapping[str, Any]:
    """See ``Described.describe``."""
    stream = {"text/event-stream": {"schema": {"type": "string", "description": "The events of the Messages API."}}}
    return {
        "paths": {
            "/messages": {"post": _operation("Have a message answered", "Request", "Message", stream)},
            "/messages/count_tokens": {"post": _operation("Count the tokens of a prompt", "CountRequest", "Count", {})},
        },
        "components": {"schemas": _SCHEMAS},
    }


def _operation(summary: str, request: str, answer: str, beside: Mapping[str, Any]) -> Schema:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {
            "200": {"description": "The answer.", "content": {**_json(answer), **beside}},
            "default": {"description": "An error.", "content": _json("Error")},
        },
    }


def _json(name: str) -> Schema:
    return {"application/json": {"schema": _ref(name)}}
