"""The order in which training takes tasks: shuffled, and determined by seed and cursor alone."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

from agentrl.tasks.contract import Task, TaskSet

__all__ = ["OrderedTask", "TaskOrder"]


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
