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
        self._orders: dict[int, array[int]] = {}
        """Those of the two epochs that were asked for last: groups of both are in flight where one ends."""

    def take(self, count: int) -> list[OrderedTask]:
        """The next ``count`` tasks; where an epoch ends between them, the next one begins."""
        positions = range(self.cursor, self.cursor + count)
        self.cursor += count
        return [self.at(position) for position in positions]

    def advance(self) -> int:
        """Take the next task without reading it. Returns its position."""
        self.cursor += 1
        return self.cursor - 1

    def at(self, position: int) -> OrderedTask:
        """The task at ``position``, counted from 0; the cursor stays where it is."""
        index = self._index(position)
        return OrderedTask(position, index, self._tasks[index])

    def repeats(self, position: int, first: int) -> int:
        """How often the task at ``position`` comes at the positions from ``first`` up to it, itself left out."""
        if first // len(self._tasks) == position // len(self._tasks):
            return 0  # An epoch holds every task once.
        index = self._index(position)
        return sum(self._index(each) == index for each in range(first, position))

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._tasks))
        if epoch not in self._orders:
            order = array("Q", range(len(self._tasks)))
            random.Random(f"tasks-{self._seed}-{epoch}").shuffle(order)
            newest = max(self._orders, default=epoch)
            self._orders = {each: held for each, held in self._orders.items() if each == newest} | {epoch: order}
        return self._orders[epoch][offset]
