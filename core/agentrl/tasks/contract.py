"""What a task and a task set are.

A task is one row of input data: a dict of plain JSON values, which an agent is given as ``data``. A task set is a
finite, ordered sequence of tasks. What an entry point of the group ``agentrl.tasks`` names is a callable that returns
a task set; it is called with the keys that stand beside the name in the config, or with its ``Settings``, a pydantic
model of those keys, where it declares one::

    def sums(size: int = 100) -> list[dict[str, str]]:
        return [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(size)]

The same keys must give the same tasks in the same order, so that a run can be repeated and resumed.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Task", "TaskSet"]

Task = dict[str, Any]
"""One row of input data. Its values are plain JSON: they are copied, sent to workers and stored."""


class TaskSet(Protocol):
    """A finite sequence of tasks. A list of dicts is one; a set that makes its tasks on demand is another."""

    def __len__(self) -> int:
        """The number of tasks, at least one."""
        ...

    def __getitem__(self, index: int, /) -> Task:
        """The task at ``index``, from 0 up to the length; equal each time that it is asked for."""
        ...
