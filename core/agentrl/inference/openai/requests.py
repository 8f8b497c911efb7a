"""An agent's request as an endpoint is sent it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentrl.inference.contract import ChatRequest

__all__ = ["Takes", "request_body"]


@dataclass(frozen=True, slots=True)
class Takes:
    """What the model of an endpoint takes; those of OpenAI that reason take neither."""

    temperature_zero: bool = True
    max_tokens: bool = True
    """Whether the limit may be called ``max_tokens``, rather than ``max_completion_tokens`` only."""


def request_body(request: ChatRequest, model: str, takes: Takes) -> dict[str, Any]:
    """The request's fields as they were written, for ``model``, with the defaults of those that were not."""
    body = {**request.body, "model": model}
    if body.get("temperature") is None:
        body["temperature"] = request.temperature
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    if limits == [None, None] and request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if not takes.max_tokens and limits[1] is None and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")  # Two names of one thing.
    return body
