"""What completions of prompts look like, for the gateway's OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.gateway.dialects.chat_schema import SAMPLING, STREAM_OPTIONS, USAGE
from agentrl.gateway.dialects.description import (
    OPENAI_ERROR,
    closed,
    either,
    levels,
    open_object,
    operation,
    whole_number,
)

__all__ = ["DESCRIPTION"]

_TEXT: Mapping[str, Any] = {"type": "string"}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_IDS = {"type": "array", "minItems": 1, "items": whole_number(0, 2**31 - 1)}
_PROMPT = either(
    _TEXT,
    {"type": "array", "minItems": 1, "items": _TEXT},
    _IDS,
    {"type": "array", "minItems": 1, "items": _IDS},
)
_REQUEST = closed(
    {
        **SAMPLING,
        "prompt": _PROMPT,
        "model": _TEXT,
        "n": whole_number(1, 128),
        "best_of": whole_number(1, 128),
        "echo": _FLAG,
        "logprobs": whole_number(0, 20),
        "suffix": {"const": ""},
        "stream": _FLAG,
        "stream_options": STREAM_OPTIONS,
        "return_token_ids": _FLAG,
    },
    ["prompt"],
    nullable=True,
)
_ANSWER = open_object(
    {
        "id": _TEXT,
        "object": {"const": "text_completion"},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": {
            "type": "array",
            "items": open_object(
                {
                    "index": whole_number(0),
                    "text": _TEXT,
                    "finish_reason": levels("stop", "length"),
                    "logprobs": {"type": ["object", "null"]},
                },
                ["index", "text", "finish_reason", "logprobs"],
            ),
        },
        "usage": USAGE,
    },
    ["id", "object", "created", "model", "choices", "usage"],
)

DESCRIPTION: Mapping[str, Any] = {
    "paths": {
        "/completions": {
            "post": operation("Complete a prompt", "TextCompletion", request="CompletionRequest", streams=True)
        }
    },
    "components": {"schemas": {"CompletionRequest": _REQUEST, "TextCompletion": _ANSWER, "Error": OPENAI_ERROR}},
}
"""The part of the document about completions."""
