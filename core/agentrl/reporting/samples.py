"""The few episodes that a tracker shows, and what it shows of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentrl.reporting.chat import chats
from agentrl.rollout.contract import Episode, Phase

__all__ = ["COLUMNS", "Samples", "row", "said"]

COLUMNS = (
    *(
        "step",
        "episode",
        "task",
        "conversation",
        "answer",
        "reward",
        "outcome",
        "calls",
        "tokens",
        "seconds",
        "version",
    ),
    "reward_parts",
)
"""What ``row`` tells of an episode, in this order."""


class Samples:
    """Keeps at most ``count`` episodes of each phase: the first samples of the first groups.

    So the sampled tasks of one evaluation are those of the next, and those of a step are of different groups.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: dict[Phase, list[Episode]] = {}

    def add(self, episode: Episode) -> None:
        """Keep ``episode`` if it is among the first."""
        kept = self._kept.setdefault(episode.key.phase, [])
        kept.append(episode)
        kept.sort(key=lambda each: (each.key.sample, each.key.group))
        del kept[self._count :]

    def take(self, *phases: Phase) -> dict[Phase, list[Episode]]:
        """The episodes of ``phases`` that were kept since they were last taken; phases without any are left out."""
        taken = {phase: self._kept.pop(phase, []) for phase in phases}
        return {phase: episodes for phase, episodes in taken.items() if episodes}


def row(step: int, episode: Episode) -> dict[str, str | float | int | None]:
    """An episode that was logged with ``step``, as the row of a table: one value for each of ``COLUMNS``."""
    return {
        "step": step,
        "episode": str(episode.key),
        "task": _json(episode.data),
        "conversation": said(episode),
        "answer": None if episode.answer is None else _json(episode.answer),
        "reward": episode.reward,
        "outcome": str(episode.failure or episode.mistake or episode.outcome),
        "calls": len(episode.calls),
        "tokens": sum(call.completion_tokens for call in episode.calls),
        "seconds": round(episode.seconds, 3),
        "version": episode.version,
        "reward_parts": _json(episode.reward_parts) if episode.reward_parts else None,
    }


def said(episode: Episode) -> str:
    """The conversations of an episode as text, each message after its role."""
    return "\n\n---\n\n".join("\n\n".join(map(_spoken, chat.messages)) for chat in chats(episode))


def _spoken(message: Mapping[str, Any]) -> str:
    content = message["content"]
    parts = [
        *([f"<think>\n{thinking}\n</think>"] if (thinking := message.get("reasoning_content")) else []),
        *([content if isinstance(content, str) else _json(content)] if content else []),
        *(f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls", ())),
    ]
    return f"{message['role']}: " + "\n".join(parts)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
