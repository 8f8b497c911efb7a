"""What a run is and what it came to, as plain values that reporters, trackers, plugins and readers share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["RunInfo", "Summary"]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Which run it is and what it is going to do."""

    name: str
    folder: Path
    """The run folder; what a tracker keeps on this machine belongs in there."""
    agent: str
    model: str
    steps: int = 0
    """Optimiser steps that the run is configured to do."""
    episodes_per_step: int = 0
    """Episodes that a step rolls out: tasks per step times episodes per task."""
    tasks: str = ""
    """The training tasks, as the config names them."""
    held_out: str | None = None
    """The tasks of evaluations, as the config names them; ``None`` where nothing is evaluated."""
    reward: str | None = None
    """The reward function that scores the answers; ``None`` where the agent returns its own reward."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. Every run that could start writes one, whatever stopped it."""

    outcome: str
    """``completed``, ``interrupted``, or ``failed: …`` with the reason."""
    steps: int = 0
    """Optimiser steps done."""
    episodes: int = 0
    """Finished episodes, those of evaluations included."""
    tokens: int = 0
    """Tokens sampled in them."""
    seconds: float = 0.0
    """Wall-clock time of the whole run."""
    reward_before: float | None = None
    """Mean sampled reward on held-out tasks before the first step; ``None`` where it was not measured."""
    reward_after: float | None = None
    """Mean sampled reward on held-out tasks under the last weights."""
    reward_before_greedy: float | None = None
    reward_after_greedy: float | None = None
    checkpoint: str | None = None
    """Folder of the last weights that were saved."""
    failed: int = 0
    """Episodes that failed because something around the policy broke; they trained nothing."""
    rejected: int = 0
    """Episodes that the agent rejected."""
    mistaken: int = 0
    """Episodes that ended with a mistake of the policy; they have a reward."""
    retried: int = 0
    """Failed calls and failed attempts that were tried again."""
    truncated: int = 0
    """Completions that were cut at their limit of tokens."""
    undelivered: int = 0
    """Completions whose client had disconnected."""
    overridden: int = 0
    """Calls that ``rollout.override`` changed."""
    unmet: int = 0
    """Calls that asked for something which nothing here can grant, and were answered without it."""
    control_tokens: int = 0
    """Calls with texts of users, systems or tools that the model read as control tokens."""
    reasons: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """For each of the counts above that is not 0, by its name, the commonest reasons: ``count``, ``reason`` and
    ``episode``, the key of the first episode."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as in ``summary.json``."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}
