"""The wire protocols as tests see them: a right request of each, all its fields, and the shape of its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["PROTOCOLS", "WireProtocol"]

ASKED = "What is 12 * 34?"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@dataclass(frozen=True)
class WireProtocol:
    """One protocol. A new one is put into ``PROTOCOLS``."""

    name: str
    path: str
    """Below the base URL."""
    request: dict[str, Any]
    """A right request with as many fields as go together."""
    texts: tuple[tuple[str | int, ...], ...]
    """Paths in it to texts that the model reads."""
    image: Callable[[dict[str, Any]], dict[str, Any]]
    """The request with an image in it."""
    error: Callable[[Any, int], None]
    """Asserts that an error's JSON has the protocol's shape for a status."""

    def __str__(self) -> str:
        return self.name


def openai_error(body: Any, status: int) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")


def anthropic_error(body: Any, status: int) -> None:
    assert body["type"] == "error"
    assert {"message", "type"} <= set(body["error"])
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
    assert body["error"]["type"] == kinds.get(status, body["error"]["type"])


FUNCTION = {"name": "calculate", "description": "Calculates.", "parameters": SCHEMA}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "calculate", "arguments": '{"n": 1}'}}

CHAT = WireProtocol(
    "chat completions",
    "/chat/completions",
    {
        "model": "policy",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": ASKED, "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [CALLED], "reasoning_content": "Hm."},
            {"role": "tool", "tool_call_id": "call_1", "content": "408"},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        ],
        "tools": [{"type": "function", "function": FUNCTION}, {"type": "custom", "custom": {"name": "run"}}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "temperature": 0.7,
        "top_p": 1,
        "max_completion_tokens": 9,
        "stop": ["\n\n"],
        "seed": 3,
        "n": 1,
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": {"type": "text"},
        "reasoning_effort": "low",
        "verbosity": "low",
        "modalities": ["text"],
        "logit_bias": {},
        "presence_penalty": 0,
        "stream": False,
        "metadata": {"a": "b"},
        "user": "u",
    },
    (("messages", 0, "content"), ("messages", 1, "content"), ("messages", 4, "content", 0, "text")),
    lambda request: {
        **request,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]}],
    },
    openai_error,
)

COMPLETIONS = WireProtocol(
    "completions",
    "/completions",
    {
        "model": "policy",
        "prompt": ASKED,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 1,
        "n": 1,
        "best_of": 1,
        "echo": False,
        "logprobs": 1,
        "stop": "\n\n",
        "seed": 3,
        "suffix": "",
        "stream": False,
        "logit_bias": {},
        "return_token_ids": True,
        "user": "u",
    },
    (("prompt",),),
    lambda request: {**request, "prompt": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]},
    openai_error,
)

RESPONSES = WireProtocol(
    "responses",
    "/responses",
    {
        "model": "policy",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": ASKED},
            {"type": "function_call", "call_id": "call_1", "name": "calculate", "arguments": '{"n": 1}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "408"},
            {"role": "user", "content": [{"type": "input_text", "text": "Sure?"}]},
        ],
        "tools": [{"type": "function", "strict": False, **FUNCTION}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "temperature": 0.7,
        "max_output_tokens": 9,
        "text": {"format": {"type": "text"}},
        "store": False,
        "stream": False,
        "include": [],
        "metadata": {},
    },
    (("instructions",), ("input", 0, "content"), ("input", 3, "content", 0, "text")),
    lambda request: {
        **request,
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png,x"}]}],
    },
    openai_error,
)

MESSAGES = WireProtocol(
    "messages",
    "/messages",
    {
        "model": "policy",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": ASKED},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "call_1", "name": "calculate", "input": {"n": 1}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "408"},
                    {"type": "text", "text": "Sure?"},
                ],
            },
        ],
        "tools": [{"name": "calculate", "description": "Calculates.", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "temperature": 0.7,
        "stop_sequences": ["\n\n"],
        "stream": False,
        "metadata": {"user_id": "u"},
    },
    (("system", 0, "text"), ("messages", 0, "content"), ("messages", 2, "content", 1, "text")),
    lambda request: {
        **request,
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}],
            }
        ],
    },
    anthropic_error,
)

PROTOCOLS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
