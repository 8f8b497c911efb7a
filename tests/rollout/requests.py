"""Requests of groups, as a training loop makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentrl.gateway import SessionSettings
from agentrl.rollout.contract import EpisodeKey, Phase
from agentrl.rollout.dispatcher import GroupRequest


def requests_of(
    tasks: Sequence[dict[str, Any]],
    settings: Callable[[EpisodeKey], SessionSettings],
    *,
    samples: int = 1,
    first: int = 0,
    phase: Phase = "train",
) -> list[GroupRequest]:
    """A group of ``samples`` episodes of every task; the ordinals count from ``first``."""
    return [
        GroupRequest(phase, first + index, index, data, range(samples), settings) for index, data in enumerate(tasks)
    ]
