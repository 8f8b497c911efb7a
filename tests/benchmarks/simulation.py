"""A discrete-event simulation of the training loop, over the rule and the buffer that the real loop uses.

Time is a number. What is simulated is what the real ones take time for: episodes, as many at once as there are
workers, and the learner's steps. Everything in between takes none.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agentrl.rollout.buffer import GroupBuffer, Taken
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.rollout.staleness import OnStale, StalenessBound

__all__ = ["Load", "Simulated", "fastest", "simulate"]

_SERVED = -1
"""In place of an ordinal: the end of a step."""


@dataclass(frozen=True)
class Load:
    """What a run has to do."""

    bound: StalenessBound
    group_size: int
    workers: int
    """Episodes that run at once."""
    seconds: np.ndarray
    """Of each episode in the order of its group's ordinal: shape ``(groups, group_size)``."""
    learner: Sequence[float]
    """Seconds of each step, until its weights are served; there are as many steps as entries."""
    on_stale: OnStale = "wait"


class _Event(NamedTuple):
    at: float
    number: int
    """Of equal times the event that was foreseen first comes first."""
    ordinal: int


@dataclass
class Simulated:
    """What happened."""

    seconds: float = 0.0
    """From the start to the end of the last step."""
    steps: list[Taken] = field(default_factory=list)
    """What each step took."""
    staleness: list[int] = field(default_factory=list)
    """Of each trained group: the version of its step minus its oldest one."""
    started: list[int] = field(default_factory=list)
    """Ordinals, in the order in which they started."""
    events: int = 0


def simulate(load: Load, watch: Callable[[GroupBuffer], None] | None = None) -> Simulated:
    """Run ``load`` to its end, and call ``watch`` after every event.

    Episodes start as the dispatcher starts them: a group's one after the other, as soon as there is a worker. Each
    samples its first token when it starts. Raises ``RuntimeError`` where nothing can happen any more.
    """
    simulation = _Simulation(load)
    while len(simulation.result.steps) < len(load.learner) or simulation.learning:
        if not simulation.events:
            raise RuntimeError(f"nothing can happen after {simulation.result}")
        simulation.next()
        if watch is not None:
            watch(simulation.buffer)
    return simulation.result


class _Simulation:
    def __init__(self, load: Load) -> None:
        self._load = load
        self.buffer = GroupBuffer(load.bound, load.on_stale)
        self.result = Simulated()
        self.events: list[_Event] = []
        self.learning = False
        self._now = 0.0
        self._foreseen = 0
        self._workers = load.workers
        self._next = 0
        self._again: deque[int] = deque()
        self._group: tuple[int, int] | None = None
        """The group that episodes are started of, and how many have been."""
        self._unfinished: dict[int, int] = {}
        self._oldest: dict[int, int] = {}
        self._dispatch()

    def next(self) -> None:
        self._now, _, ordinal = heapq.heappop(self.events)
        self.result.events += 1
        if ordinal == _SERVED:
            self.learning = False
            self.result.seconds = self._now
            self.buffer.served(self.buffer.version + 1)
        else:
            self._workers += 1
            self._unfinished[ordinal] -= 1
            if not self._unfinished[ordinal]:
                self.buffer.finish(_group(ordinal), self._oldest[ordinal], True)
        self._learn()
        self._dispatch()

    def _learn(self) -> None:
        step = len(self.result.steps)
        if self.learning or step == len(self._load.learner) or (taken := self.buffer.take()) is None:
            return
        self.learning = True
        self.result.steps.append(taken)
        self.result.staleness += [self.buffer.version - self._oldest[group.ordinal] for group in taken.groups]
        self._again.extend(group.ordinal for group in taken.stale)
        self._foresee(self._load.learner[step], _SERVED)

    def _dispatch(self) -> None:
        size = self._load.group_size
        while self._workers:
            if self._group is None:
                if not self._admits():
                    return
                self._group = (self._start(), 0)
            ordinal, begun = self._group
            self._group = (ordinal, begun + 1) if begun + 1 < size else None
            self._workers -= 1
            seconds = self._load.seconds[ordinal % len(self._load.seconds), begun]
            self._foresee(float(seconds), ordinal)

    def _start(self) -> int:
        if self._again:
            ordinal = self._again.popleft()
        else:
            ordinal, self._next = self._next, self._next + 1
        self.buffer.start(ordinal)
        self.result.started.append(ordinal)
        self._unfinished[ordinal] = self._load.group_size
        self._oldest[ordinal] = self.buffer.version
        return ordinal

    def _admits(self) -> bool:
        """As ``training/supply.py`` does: near the end no group starts that no step would train."""
        needed = (len(self._load.learner) - self.buffer.version) * self._load.bound.per_step
        return self.buffer.may_start() and len(self.buffer.outstanding) < needed

    def _foresee(self, seconds: float, ordinal: int) -> None:
        self._foreseen += 1
        heapq.heappush(self.events, _Event(self._now + seconds, self._foreseen, ordinal))


def fastest(load: Load) -> float:
    """Seconds of ``load`` in the best schedule within its bound, were there a worker for every episode.

    Every group starts when the bound has room for it, so ``per_step`` of them start with every version and are the ones
    that are due ``max_staleness`` steps later: a step begins when the learner is free and all that is due has finished.
    Only among the groups that start at first can the earlier steps choose. No schedule that trains groups in the order
    of their tasks is faster. One that takes short groups first may be, where it happens to have long ones run side by
    side: it would have to know how long they are going to take.
    """
    ahead, size = load.bound.max_staleness, load.bound.per_step
    longest = np.asarray(load.seconds).max(axis=1)
    finished = np.sort(longest[: load.bound.slots])
    served = [0.0]
    for step, seconds in enumerate(load.learner):
        if step <= ahead:
            ready = finished[min(len(finished), (step + 1) * size) - 1]
        else:
            ready = served[step - ahead] + longest[step * size : (step + 1) * size].max()
        served.append(max(served[step], float(ready)) + seconds)
    return served[-1]


def _group(ordinal: int) -> Group:
    return Group(0, (Episode(EpisodeKey("train", ordinal, 0, 0), {}, "rewarded", 0.0),))
