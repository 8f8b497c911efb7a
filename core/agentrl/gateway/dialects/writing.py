"""How dialects write: JSON, server-sent events, and what the protocols of OpenAI share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Completion, Reply, Tokens

__all__ = [
    "EVENT_STREAM",
    "listed_logprobs",
    "logprobs_of",
    "openai_error",
    "openai_refusal",
    "server_event",
    "usage_of",
    "written",
]

EVENT_STREAM = {"content-type": "text/event-stream"}
"""The headers of a reply that consists of server-sent events."""


_IMPOSSIBLE = -9999.0
"""How OpenAI writes a log-probability of minus infinity, for which JSON has no number."""


def written(value: object) -> bytes:
    """``value`` as JSON. orjson refuses half characters and integers of more than 64 bits, which json writes."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, default=_fragment).encode()


def _fragment(value: object) -> object:
    if isinstance(value, orjson.Fragment):
        return json.loads(value.contents)
    raise TypeError(f"{type(value).__name__} is no JSON")


def server_event(value: object, name: str = "") -> bytes:
    """A server-sent event whose data is ``value`` as JSON, with its ``name`` where it has one."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + written(value) + b"\n\n"


def openai_error(error: GatewayError) -> dict[str, Any]:
    """The object that OpenAI's protocols put under ``error``."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"message": str(error), "type": kind, "param": error.param, "code": error.code}


def openai_refusal(error: GatewayError) -> Reply:
    """The reply with which OpenAI's protocols refuse a request."""
    return Reply(error.status, written({"error": openai_error(error)}))


def usage_of(completions: Sequence[Completion]) -> dict[str, int]:
    """The tokens of a request and of its choices, as the chat completions and the completions API count them."""
    prompt = completions[0].call.prompt_tokens
    sampled = sum(each.call.completion_tokens for each in completions)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def listed_logprobs(tokens: Tokens) -> orjson.Fragment:
    """What ``logprobs_of`` lists, as JSON that ``written`` takes for a value; long ones in a fraction of the time."""
    if tokens.top_logprobs or not tokens.ids:
        return orjson.Fragment(orjson.dumps(logprobs_of(tokens)))
    pieces = map(tokens.piece, tokens.ids, (tokens.before, *tokens.ids[:-1]))
    values = orjson.dumps([max(value, _IMPOSSIBLE) for value in tokens.logprobs])[1:-1].split(b",")
    entries = [_opened(piece) + value for piece, value in zip(pieces, values, strict=True)]
    return orjson.Fragment(b"[" + b"},".join(entries) + b"}]")


@lru_cache(2**16)
def _opened(piece: bytes) -> bytes:
    """The entry of a token without alternatives, up to its log-probability."""
    entry = {"token": piece.decode(errors="replace"), "bytes": list(piece), "top_logprobs": []}
    return orjson.dumps(entry)[:-1] + b',"logprob":'


def logprobs_of(tokens: Tokens) -> list[dict[str, Any]]:
    """The tokens with their log-probabilities and alternatives, as OpenAI's protocols list them."""
    tops = tokens.top_logprobs or ((),) * len(tokens.ids)
    listed: list[dict[str, Any]] = []
    before = tokens.before
    for token, logprob, top in zip(tokens.ids, tokens.logprobs, tops, strict=True):
        others = [_logprob(tokens, other, value, before) for other, value in top]
        listed.append(_logprob(tokens, token, logprob, before) | {"top_logprobs": others})
        before = token
    return listed


def _logprob(tokens: Tokens, token: int, logprob: float, before: int | None) -> dict[str, Any]:
    raw = tokens.piece(token, before)
    return {"token": raw.decode(errors="replace"), "logprob": max(logprob, _IMPOSSIBLE), "bytes": list(raw)}
