"""What every task set has to hold to."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from agentrl.plugins import Plugins
from agentrl.tasks import TaskSet, load_tasks
from agentrl.testing.parts import MISSING, PartName, as_part, given
from agentrl.worker.protocol import unfit

__all__ = ["TaskSetConformance"]


class TaskSetConformance:
    """Tests of one task set. Subclass it with a name that begins with ``Test``, and set ``tasks``."""

    tasks: ClassVar[PartName] = MISSING
    """Its name, or ``{"name": …}`` with its keys."""
    most_rows: ClassVar[int] = 200
    """How many tasks are looked at, from the beginning and from the end."""

    @pytest.fixture(scope="class")
    @classmethod
    def task_set(cls) -> TaskSet:
        """The tasks."""
        return _loaded(cls)

    @pytest.fixture(scope="class")
    @classmethod
    def rows(cls, task_set: TaskSet) -> dict[int, dict[str, Any]]:
        """Tasks by index, as they are at first."""
        return {index: copy.deepcopy(task_set[index]) for index in _indexes(task_set, cls.most_rows)}

    def test_it_has_a_length_and_tasks(self, task_set: TaskSet) -> None:
        assert len(task_set) > 0
        assert len(task_set) == len(task_set), "its length changes"

    def test_a_task_is_a_dict_that_json_carries_as_it_is(self, rows: dict[int, dict[str, Any]]) -> None:
        for index, row in rows.items():
            fault = unfit(row, f"task {index}")
            assert fault is None, f"JSON cannot carry {fault}"
            assert json.loads(json.dumps(row)) == row, f"task {index} comes out of JSON as something else"

    def test_the_same_index_gives_the_same_task(self, task_set: TaskSet, rows: dict[int, dict[str, Any]]) -> None:
        for index in reversed(rows):
            assert task_set[index] == rows[index], f"task {index} is another one the second time"

    def test_loaded_again_it_has_the_same_tasks(self, rows: dict[int, dict[str, Any]]) -> None:
        again = _loaded(type(self))
        for index, row in rows.items():
            assert again[index] == row, f"task {index} is another one where the set is loaded again"

    def test_an_index_beyond_the_end_is_an_index_error(self, task_set: TaskSet) -> None:
        for index in (len(task_set), len(task_set) + 7, -len(task_set) - 1):
            with pytest.raises(IndexError):
                task_set[index]


def _loaded(suite: type) -> TaskSet:
    return load_tasks(Plugins(), as_part(given(suite, "tasks")))


def _indexes(task_set: TaskSet, most: int) -> Iterator[int]:
    size = len(task_set)
    yield from range(size) if size <= 2 * most else (*range(most), *range(size - most, size))
