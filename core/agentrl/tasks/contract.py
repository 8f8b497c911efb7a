"""What a task set is: a finite, ordered sequence of tasks.

A registered name is a callable that returns one, given the keys beside the name in the config. Order
and content depend on those keys alone, so that a run can be repeated and resumed.
"""

from __future__ import annotations

from typing import Any, Protocol

Task = dict[str, Any]


class TaskSet(Protocol):
    """A finite sequence of dicts of plain JSON values. Sequences such as lists are task sets."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Task: ...
