"""What passes between the gateway and the rollout: session settings in, recorded calls out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How the calls of one session are sampled and what they may ask for."""

    training: bool
    """In a training session, a field that the learner could not account for is refused."""
    model: str = "policy"
    """The name that responses carry; any name in a request is the policy."""
    temperature: float = 1.0
    """Used where a request sets none."""
    max_tokens: int | None = None
    """Used where a request sets none."""
    override: Mapping[str, Any] = field(default_factory=dict)
    """``rollout.override``: request fields that are replaced, or dropped where the value is ``None``; beside them
    ``strict``, that of every tool."""
    versions: tuple[int, int] | None = None
    """The oldest and the newest policy version that tokens may be of; ``None`` takes any."""
    seed_key: tuple[int | str, ...] = ()
    """What every call's seed derives from: run seed, phase, version, task, sample."""


@dataclass(frozen=True, slots=True)
class Call:
    """One completed request to the model."""

    id: str
    """The response id that the agent saw; its sampled span names it too."""
    parent: str | None
    """Response id of the call whose conversation this one continues, judged by messages."""
    request: Mapping[str, Any]
    """The request as the gateway took it: messages, tools and sampling fields, plain JSON."""
    message: Mapping[str, Any]
    """The assistant message that the agent was given."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    fork_reason: str | None = None
    """Why the history was rendered in full instead of extended; ``None`` where it was extended or new."""
    overridden: tuple[str, ...] = ()
    """Request fields that ``rollout.override`` replaced or dropped; ``strict`` is that of its tools."""
    unmet: tuple[str, ...] = ()
    """What the request asked for and did without, for nothing here can grant it: ``strict`` of its tools."""
    control_tokens: tuple[str, ...] = ()
    """Control tokens that texts of users, systems and tools spell out, and the model reads as such. Those of the
    conversation that it continues are not told again."""
    delivered: bool = True
    """Whether the agent has the answer, as far as is known: not where its client went before the last byte."""
    seconds: float = 0.0
