"""Which groups training asks for: tasks in a shuffled order, which seed and cursor alone determine."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from dataclasses import dataclass

from agentrl.config.models import Config
from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.contract import EpisodeKey
from agentrl.rollout.dispatcher import GroupRequest
from agentrl.rollout.staleness import MAX_STALENESS, oldest_version
from agentrl.tasks.contract import Task, TaskSet

__all__ = ["OrderedTask", "TaskOrder", "group_requests", "training_session"]


@dataclass(frozen=True, slots=True)
class OrderedTask:
    """A task, its index in its set, and its position in the task order."""

    position: int
    index: int
    data: Task


class TaskOrder:
    """An endless walk over a task set, shuffled anew every epoch. ``cursor`` counts the tasks taken so far."""

    def __init__(self, tasks: TaskSet, seed: int, cursor: int = 0) -> None:
        self._tasks = tasks
        self._seed = seed
        self.cursor = cursor
        self._epoch = -1
        self._order = array("Q")

    def take(self, count: int) -> list[OrderedTask]:
        """The next ``count`` tasks; where an epoch ends between them, the next one begins."""
        positions = range(self.cursor, self.cursor + count)
        self.cursor += count
        return [OrderedTask(position, index := self._index(position), self._tasks[index]) for position in positions]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._tasks))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, array("Q", range(len(self._tasks)))
            random.Random(f"tasks-{self._seed}-{epoch}").shuffle(self._order)
        return self._order[offset]


def group_requests(config: Config, tasks: list[OrderedTask], version: int) -> list[GroupRequest]:
    """The groups of one step: ``rollout.group_size`` episodes of each task, under weights of ``version``.

    Where a small set repeats a task within the step, its sample numbers go on, so that no two episodes of the step
    sample the same tokens.
    """
    size = config.rollout.group_size
    taken: Counter[int] = Counter()
    requests = []
    for task in tasks:
        samples = range(taken[task.index], taken[task.index] + size)
        taken[task.index] += size
        requests.append(
            GroupRequest(
                phase="train",
                ordinal=task.position,
                task=task.index,
                data=task.data,
                samples=samples,
                settings=lambda key: training_session(config, key, version),
            )
        )
    return requests


def training_session(config: Config, key: EpisodeKey, version: int) -> SessionSettings:
    """How the session of the training episode ``key`` samples under weights of ``version``."""
    rollout = config.rollout
    return SessionSettings(
        training=True,
        model=config.model.name,
        temperature=rollout.temperature,
        max_tokens=rollout.max_tokens,
        override=rollout.override,
        versions=(oldest_version(version, MAX_STALENESS), version),
        seed_key=(config.seed, key.phase, version, key.task, key.sample),
    )
