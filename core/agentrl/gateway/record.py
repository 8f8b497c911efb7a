"""A call in its session: what it continues, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.gateway.contract import Call
from agentrl.gateway.conversations import Match, MessageKey, Turn
from agentrl.tokens.contract import Position, Sampled

__all__ = ["Plan", "Record", "turn_of"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call's prompt follows from what its session recorded."""

    match: Match
    history: list[int]
    """The ids that the matched turn's conversation comes to; empty where there is none."""
    spelled: list[frozenset[str]]
    """For each message of the request, the control tokens that the policy spelled out when it wrote it."""

    @property
    def prompt(self) -> list[int]:
        """The part of ``history`` that the matched turn was given."""
        return self.history[: self.match.turn.prompt_tokens] if self.match.turn else []

    @property
    def completion(self) -> list[int]:
        """The part of ``history`` that the matched turn sampled and the agent saw."""
        return self.history[self.match.turn.prompt_tokens :] if self.match.turn else []


@dataclass(frozen=True, slots=True)
class Record:
    """A completed call, ready to be recorded."""

    call: Call
    sampled: Sampled
    prompt_ids: list[int]
    completion_ids: tuple[int, ...]
    shown: int | None
    """How many tokens of the completion the agent saw; ``None`` where that ends inside one."""
    extends: bool
    """Whether the prompt begins with the matched turn's own ids."""
    thinking: bool
    digest: bytes
    tools: str
    keys: Sequence[MessageKey]
    """Keys of the request's messages and of the completion's."""
    spelled: frozenset[str] = frozenset()
    """Control tokens that the completion spells out in others."""


def turn_of(record: Record, end: Position) -> Turn:
    """The end of the conversation that a call recorded up to ``end`` came to."""
    message = record.call.message
    return Turn(
        call=record.call.id,
        digest=record.digest,
        position=None if record.shown is None else Position(end.span, record.shown),
        prompt_tokens=len(record.prompt_ids),
        thinking=record.thinking,
        message=message,
        tool_call_ids=tuple(call["id"] for call in message.get("tool_calls") or ()),
    )
