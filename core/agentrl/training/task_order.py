"""The order in which tasks are trained: shuffled anew every epoch, and a function of seed and cursor alone."""

from __future__ import annotations

import random
from array import array

from agentrl.rollout.groups import IndexedTask
from agentrl.tasks.contract import TaskSet

__all__ = ["TaskOrder"]


class TaskOrder:
    """An endless walk over a task set. ``cursor`` counts the tasks taken so far."""

    def __init__(self, tasks: TaskSet, seed: int, cursor: int = 0) -> None:
        self._tasks = tasks
        self._seed = seed
        self.cursor = cursor
        self._epoch = -1
        self._order = array("Q")

    def take(self, count: int) -> list[IndexedTask]:
        """The next ``count`` tasks; where an epoch ends between them, the next one begins."""
        indices = [self._index(self.cursor + offset) for offset in range(count)]
        self.cursor += count
        return [IndexedTask(index, self._tasks[index]) for index in indices]

    def _index(self, cursor: int) -> int:
        epoch, place = divmod(cursor, len(self._tasks))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, array("Q", range(len(self._tasks)))
            random.Random(f"tasks-{self._seed}-{epoch}").shuffle(self._order)
        return self._order[place]
