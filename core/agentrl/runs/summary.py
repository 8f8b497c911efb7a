"""What a run came to: ``summary.json``, and the lines a person reads last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from agentrl.errors import RunError
from agentrl.rollout.tally import Cause, Kind, sentence

__all__ = ["Summary", "duration", "final_lines", "read_summary", "reward_text"]


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended; every run that could start leaves one, whatever stopped it."""

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
    """The same under the last weights."""
    reward_before_greedy: float | None = None
    reward_after_greedy: float | None = None
    checkpoint: str | None = None
    """Folder of the last weights that were saved."""
    failed: int = 0
    """Episodes that failed: something around the policy broke, and they trained nothing."""
    rejected: int = 0
    """Episodes that the agent rejected."""
    mistaken: int = 0
    """Episodes that a mistake of the policy ended; they have a reward."""
    retried: int = 0
    """Failures, of calls and of whole attempts, that were tried again."""
    truncated: int = 0
    """Completions that were cut at their limit of tokens."""
    undelivered: int = 0
    """Completions whose client had gone."""
    overridden: int = 0
    """Calls that ``rollout.override`` changed."""
    unmet: int = 0
    """Calls that did without something that they asked for."""
    control_tokens: int = 0
    """Calls with texts of users, systems or tools that the model read as control tokens."""
    reasons: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The commonest causes of those that there were, by name: ``count``, ``reason`` and ``episode``, the key of the
    first."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as in ``summary.json``."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


def read_summary(path: Path) -> Summary:
    """The summary that a run wrote to ``path``. Raises ``RunError`` where there is none to read."""
    try:
        return Summary(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RunError(
            f"no summary at {path}: {error.strerror}", fix="a run writes it when it ends; was it killed?"
        ) from error
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is not a run's summary: {error}") from error


def final_lines(summary: Summary, command: str | None = None) -> list[str]:
    """What was learned, where it is, and ``command``, which evaluates it; to be printed last."""
    lines = [_headline(summary)]
    readings = [
        ("sampled", summary.reward_before, summary.reward_after),
        ("greedy", summary.reward_before_greedy, summary.reward_after_greedy),
    ]
    for name, before, after in readings:
        if before is not None or after is not None:
            lines.append(f"held-out reward, {name}: {_reward(before)} before, {_reward(after)} after")
    lines += _troubles(summary)
    if summary.checkpoint is None:
        lines.append("no checkpoint was saved")
        return lines
    lines.append(f"checkpoint: {summary.checkpoint}")
    if command is not None:
        lines.append(f"evaluate it: {command}")
    return lines


def _headline(summary: Summary) -> str:
    counted = [(summary.steps, "step"), (summary.episodes, "episode"), (summary.tokens, "token")]
    counts = ", ".join(f"{number:,} {noun}{'' if number == 1 else 's'}" for number, noun in counted)
    return f"{summary.outcome} after {counts} in {duration(summary.seconds)}"


def _troubles(summary: Summary) -> list[str]:
    """A line for each of what did not go as it should, with its commonest cause."""
    return [
        sentence(cast(Kind, kind), getattr(summary, kind), summary.episodes, Cause(**causes[0]))
        for kind, causes in summary.reasons.items()
    ]


def reward_text(value: float) -> str:
    """A reward, or a mean of rewards, as it is shown: of any size, in a few characters."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.4g}"


def _reward(value: float | None) -> str:
    return "not measured" if value is None else reward_text(value)


def duration(seconds: float) -> str:
    """A length of time as a person says it: ``8.4 s``, ``2:05 min``, ``1:02:03 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
