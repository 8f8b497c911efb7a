"""Which waiting episode goes to which worker, and how many more workers are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Load", "Plan", "plan"]


@dataclass(slots=True)
class Load:
    """What a worker is doing."""

    episodes: int = 0
    closed: bool = False
    """Whether it takes no more: the episode in it, or one that waits for it, wants to be alone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now."""

    placed: list[tuple[int, int]]
    """Index of an episode that waits, and of the worker that it goes to."""
    starts: int
    """How many more workers to start."""


def plan(waiting: Sequence[bool], loads: Sequence[Load], *, capacity: int, starting: int, room: int) -> Plan:
    """Place episodes, the longest waiting first, each on the least loaded worker.

    ``waiting`` tells of each whether it must be ``alone``, ``loads`` what the live workers do; ``starting`` more
    will live soon, and ``room`` others may be started. A worker runs ``capacity`` episodes at once. One that must
    be alone and finds no empty worker keeps the least loaded from taking more. As only other workers take
    episodes then, the least load never grows, so it reaches nothing and nobody waits for ever.
    """
    now = [Load(load.episodes, load.closed) for load in loads]
    soon = [Load() for _ in range(starting)]
    placed: list[tuple[int, int]] = []
    for episode, alone in enumerate(waiting):
        limit = 1 if alone else capacity
        if (worker := _least(now, limit)) is not None:
            placed.append((episode, worker))
            _put(now[worker], alone)
        elif (worker := _least(soon, limit)) is not None:
            _put(soon[worker], alone)
        elif len(soon) < starting + room:
            soon.append(Load())
            _put(soon[-1], alone)
        elif alone:
            _close_least(now)
        else:
            break
    return Plan(placed, len(soon) - starting)


def _put(load: Load, alone: bool) -> None:
    load.episodes += 1
    load.closed = alone


def _least(loads: Sequence[Load], limit: int) -> int | None:
    """The least loaded that takes an episode and has fewer than ``limit``."""
    takes = [index for index, load in enumerate(loads) if not load.closed and load.episodes < limit]
    return min(takes, key=lambda index: loads[index].episodes, default=None)


def _close_least(loads: Sequence[Load]) -> None:
    takes = [load for load in loads if not load.closed]
    if takes:
        min(takes, key=lambda load: load.episodes).closed = True
