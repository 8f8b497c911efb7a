"""A request to the model, whichever wire protocol it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.gateway.contract import Call
from agentrl.tokens.template import Message

if TYPE_CHECKING:
    from agentrl.gateway.session import Session

__all__ = ["Completes", "Completion", "ModelRequest"]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What is asked of the model, checked and in one shape."""

    body: Mapping[str, Any]
    """The request as it was sent, after ``rollout.override``."""
    messages: list[Message]
    """In the shape of the chat completions API, plain JSON."""
    tools: list[dict[str, Any]] | None = None
    calls_tools: bool = True
    """Whether a tool call in the completion is one, rather than text."""
    one_call: bool = False
    """Whether the turn ends with its first tool call."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The sampling fields that were set, under the names of the chat completions API."""
    logprobs: bool = False
    top_logprobs: int = 0
    unmet: tuple[str, ...] = ()
    """See ``Call.unmet``."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model answered, as a dialect puts it on the wire."""

    call: Call
    model: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    answer: Mapping[str, Any] = field(default_factory=dict)
    """The body that an endpoint answered with, where the call was passed on to one; then there are no ids."""


class Completes(Protocol):
    """What answers requests behind the dialects."""

    async def complete(self, session: Session, request: ModelRequest, overridden: tuple[str, ...] = ()) -> Completion:
        """Have one completion made, and record it in ``session``; a call that fails or is cancelled leaves no trace.

        Raises ``GatewayError`` for what the request got wrong and ``BackendError`` for what failed behind it.
        """
        ...
