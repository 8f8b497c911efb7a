"""What chat completions look like, for the gateway's OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

__all__ = ["DESCRIPTION", "SAMPLING", "STREAM_OPTIONS", "USAGE"]

_TEXT: Mapping[str, Any] = {"type": "string"}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_OBJECT: Mapping[str, Any] = {"type": "object"}
_ANYTHING: Mapping[str, Any] = {}
_NAMED = closed({"name": {"type": "string", "minLength": 1}}, ["name"])
_POSITIVE: Mapping[str, Any] = {"type": "number", "minimum": 0}

SAMPLING: Mapping[str, Any] = {
    "temperature": _POSITIVE,
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": whole_number(-1),
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
    "stop": either({"type": "string"}, {"type": "array", "items": {"type": "string", "minLength": 1}}),
    "max_tokens": whole_number(1),
    "max_completion_tokens": whole_number(1),
    "frequency_penalty": {"type": "number"},
    "presence_penalty": {"type": "number"},
    "repetition_penalty": {"type": "number"},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
    "user": _ANYTHING,
    "metadata": _ANYTHING,
    "store": _ANYTHING,
    "service_tier": _ANYTHING,
    "safety_identifier": _ANYTHING,
    "prediction": _ANYTHING,
    "prompt_cache_key": _ANYTHING,
    "prompt_cache_options": _ANYTHING,
    "prompt_cache_retention": _ANYTHING,
}
"""The fields that requests for completions of both kinds have. Those of any type have no effect."""

STREAM_OPTIONS = closed({"include_usage": _FLAG, "include_obfuscation": _FLAG}, nullable=True)

USAGE = open_object(
    {name: whole_number(0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
    ["prompt_tokens", "completion_tokens", "total_tokens"],
)

_PART = either(
    open_object({"type": levels("text"), "text": _TEXT}, ["type", "text"]),
    open_object({"type": levels("refusal"), "refusal": _TEXT}, ["type", "refusal"]),
)
_CONTENT = either(_TEXT, {"type": "array", "items": _PART})
_CALL = either(
    open_object(
        {
            "id": {"type": ["string", "null"]},
            "type": levels("function"),
            "function": open_object({"name": _TEXT, "arguments": _TEXT}, ["name", "arguments"]),
        },
        ["function"],
    ),
    open_object(
        {
            "id": {"type": ["string", "null"]},
            "type": levels("custom"),
            "custom": open_object({"name": _TEXT, "input": _TEXT}, ["name", "input"]),
        },
        ["type", "custom"],
    ),
)
_NAME = {"type": ["string", "null"]}
_MESSAGE = either(
    closed(
        {"role": levels("system", "developer", "user"), "content": _CONTENT, "name": _NAME},
        ["role", "content"],
    ),
    closed(
        {"role": levels("tool"), "content": _CONTENT, "name": _NAME, "tool_call_id": _NAME},
        ["role", "content"],
    ),
    open_object(
        {
            "role": levels("assistant"),
            "content": either(_CONTENT, {"type": "null"}),
            "name": _NAME,
            "refusal": _NAME,
            "reasoning_content": _NAME,
            "reasoning": _NAME,
            "tool_calls": either({"type": "array", "items": _CALL}, {"type": "null"}),
        },
        ["role"],
    ),
)
_GRAMMAR = open_object({"syntax": _TEXT, "definition": _TEXT}, ["definition"])
_TOOL = either(
    open_object(
        {
            "type": levels("function"),
            "function": open_object(
                {
                    "name": {"type": "string", "minLength": 1},
                    "description": _NAME,
                    "parameters": either(_OBJECT, {"type": "null"}),
                    "strict": {"type": ["boolean", "null"]},
                },
                ["name"],
            ),
        },
        ["type", "function"],
    ),
    open_object(
        {
            "type": levels("custom"),
            "custom": open_object(
                {
                    "name": {"type": "string", "minLength": 1},
                    "description": _NAME,
                    "format": either(
                        open_object({"type": levels("text")}, ["type"]),
                        open_object({"type": levels("grammar"), "grammar": _GRAMMAR}, ["type", "grammar"]),
                    ),
                },
                ["name"],
            ),
        },
        ["type", "custom"],
    ),
)
_CHOSEN = either(
    closed({"type": levels("function"), "function": _NAMED}, ["type", "function"]),
    closed({"type": levels("custom"), "custom": _NAMED}, ["type", "custom"]),
)
_CHOICE = either(
    levels("none", "auto", "required"),
    _CHOSEN,
    closed(
        {
            "type": levels("allowed_tools"),
            "allowed_tools": closed(
                {"mode": levels("auto", "required"), "tools": {"type": "array", "items": _CHOSEN}},
                ["mode", "tools"],
            ),
        },
        ["type", "allowed_tools"],
    ),
)
_FORM = either(
    open_object({"type": levels("text", "json_object")}, ["type"]),
    open_object(
        {
            "type": levels("json_schema"),
            "json_schema": open_object(
                {
                    "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                    "schema": _OBJECT,
                    "strict": {"type": ["boolean", "null"]},
                },
                ["name", "schema"],
            ),
        },
        ["type", "json_schema"],
    ),
)
_REQUEST = closed(
    {
        **SAMPLING,
        "messages": {"type": "array", "minItems": 1, "items": ref("Message")},
        "model": _TEXT,
        "tools": {"type": "array", "items": ref("Tool")},
        "tool_choice": _CHOICE,
        "parallel_tool_calls": _FLAG,
        "logprobs": _FLAG,
        "top_logprobs": whole_number(0, 20),
        "n": whole_number(1, 128),
        "stream": _FLAG,
        "stream_options": STREAM_OPTIONS,
        "response_format": _FORM,
        "modalities": {"const": ["text"]},
        "reasoning_effort": levels("none", "minimal", "low", "medium", "high", "xhigh", "max"),
        "verbosity": levels("low", "medium", "high"),
        "chat_template_kwargs": _OBJECT,
    },
    ["messages"],
    nullable=True,
)
_ANSWER = open_object(
    {
        "id": _TEXT,
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": {
            "type": "array",
            "items": open_object(
                {
                    "index": whole_number(0),
                    "message": open_object({"role": {"const": "assistant"}, "content": _NAME}, ["role", "content"]),
                    "finish_reason": levels("stop", "length", "tool_calls"),
                    "logprobs": {"type": ["object", "null"]},
                },
                ["index", "message", "finish_reason", "logprobs"],
            ),
        },
        "usage": USAGE,
    },
    ["id", "object", "created", "model", "choices", "usage"],
)

DESCRIPTION: Mapping[str, Any] = {
    "paths": {
        "/chat/completions": {
            "post": operation("Answer a conversation", "ChatCompletion", request="ChatRequest", streams=True)
        }
    },
    "components": {
        "schemas": {
            "ChatRequest": _REQUEST,
            "Message": _MESSAGE,
            "Tool": _TOOL,
            "ChatCompletion": _ANSWER,
            "Error": OPENAI_ERROR,
        }
    },
}
"""The part of the document about chat completions."""
