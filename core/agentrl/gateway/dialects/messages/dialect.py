"""The Messages API of Anthropic: ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agentrl.errors import GatewayError
from agentrl.gateway.contract import (
    CONTEXT_EXCEEDED,
    Completion,
    Event,
    ModelRequest,
    Reply,
    Route,
    WireRequest,
    new_call_id,
)
from agentrl.gateway.dialects.messages.blocks import answer_blocks
from agentrl.gateway.dialects.messages.events import EventWriter, message_events
from agentrl.gateway.dialects.messages.override import override_fields
from agentrl.gateway.dialects.messages.request import read_request, tells_thinking
from agentrl.gateway.dialects.messages.schema import description
from agentrl.gateway.dialects.writing import EVENT_STREAM, written

__all__ = ["Messages"]

_CREATE = Route("/messages")
_COUNT = Route("/messages/count_tokens")

_ERRORS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""The types of errors by status; of others with 4xx ``invalid_request_error``, and with 5xx ``api_error``."""
_TOO_LONG = "prompt is too long: "
"""By these words clients know that they have to shorten their history."""
_STOP_REASONS = {"tool_calls": "tool_use", "content_filter": "refusal"}


class Messages:
    """The dialect of the Messages API."""

    routes = (_CREATE, _COUNT)

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Apply ``rollout.override``; see ``Dialect.override``."""
        return override_fields(body, override)

    def parse(self, request: WireRequest) -> ModelRequest | Reply:
        """Read a request for a message, or count the tokens of one; see ``Dialect.parse``."""
        if request.route is _CREATE:
            return read_request(request)
        tokens = request.count(read_request(request, counts=True))
        return Reply(200, written({"input_tokens": tokens}), _request_id(new_call_id("req_")))

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        """Write a message; see ``Dialect.respond``."""
        (answer,) = completions
        call = answer.call
        blocks = answer_blocks(call.message, answer.handle, tells_thinking=tells_thinking(request.body))
        message = _message(call.id, answer.model, blocks, call.prompt_tokens, call.completion_tokens)
        return Reply(200, written({**message, **_stopped(request, answer)}), _request_id(_request_of(asked)))

    def stream(self, request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]) -> Reply:
        """Write a message as server-sent events; see ``Dialect.stream``."""
        call, name, sent = asked[0].call_id, request.settings.model, _request_of(asked)
        parts = message_events(
            events,
            EventWriter(lambda: request.handle(call), tells_thinking=tells_thinking(request.body)),
            start=lambda prompt: _message(call, name, [], prompt, 0),
            end=lambda answer: {
                "delta": _stopped(request, answer),
                "usage": _usage(answer.call.prompt_tokens, answer.call.completion_tokens),
            },
            error=lambda error: _error(error, sent),
        )
        return Reply(200, parts, EVENT_STREAM | _request_id(sent))

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error; see ``Dialect.refuse``."""
        sent = new_call_id("req_")
        return Reply(error.status, written(_error(error, sent)), _request_id(sent))

    def describe(self) -> Mapping[str, Any]:
        """Say what is served; see ``Described.describe``."""
        return description()


def _message(call: str, model: str, blocks: list[Any], prompt: int, sampled: int) -> dict[str, Any]:
    return {
        "id": call,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(prompt, sampled),
    }


def _usage(prompt: int, sampled: int) -> dict[str, int]:
    """Prompts are counted whole: what of them a backend had computed before is not known."""
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": prompt, **cached, "output_tokens": sampled}


def _stopped(request: WireRequest, answer: Completion) -> dict[str, Any]:
    """Why the message ended, and the text that ended it."""
    call = answer.call
    if call.finish_reason == "length":
        limit = request.body.get("max_tokens")
        whole = not isinstance(limit, int) or call.completion_tokens >= limit
        return {"stop_reason": "max_tokens" if whole else "model_context_window_exceeded", "stop_sequence": None}
    if call.finish_reason == "stop" and answer.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop}
    return {"stop_reason": _STOP_REASONS.get(call.finish_reason, "end_turn"), "stop_sequence": None}


def _error(error: GatewayError, sent: str) -> dict[str, Any]:
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = f"{_TOO_LONG if error.code == CONTEXT_EXCEEDED else ''}{error}"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": sent}


def _request_of(asked: Sequence[ModelRequest]) -> str:
    """The id of a request that is answered, which follows from that of its answer."""
    return f"req_{asked[0].call_id.removeprefix('msg_')}"


def _request_id(sent: str) -> dict[str, str]:
    return {"request-id": sent}
