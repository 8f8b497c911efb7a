"""The conformance suite of task sets."""

from __future__ import annotations

import copy
import json
from typing import Any, ClassVar

import pytest

from agentrl.agents.result import as_number
from agentrl.plugins import Plugins
from agentrl.tasks import Task, TaskSet, load_tasks
from agentrl.testing.parts import MISSING, PartName, as_part, failing_tests, required
from agentrl.worker.protocol import unfit

__all__ = ["TaskSetConformance"]


class TaskSetConformance:
    """Tests of one task set. Subclass it with a name that begins with ``Test``, and set ``tasks``."""

    tasks: ClassVar[PartName] = MISSING
    """Its name, or ``{"name": …}`` with its keys; or a file or folder of tasks."""
    most_rows: ClassVar[int] = 200
    """How many tasks are checked, half of them from the end."""

    @classmethod
    def loaded(cls) -> TaskSet:
        """Returns the task set, loaded anew."""
        return load_tasks(Plugins(), as_part(required(cls, "tasks")))

    @pytest.fixture(scope="class")
    @classmethod
    def task_set(cls) -> TaskSet:
        """The task set, loaded once."""
        with failing_tests():
            return cls.loaded()

    @pytest.fixture(scope="class")
    @classmethod
    def rows(cls, task_set: TaskSet) -> dict[int, Task]:
        """Copies of the tasks by index, as they are at first."""
        size, half = len(task_set), cls.most_rows // 2
        indexes = range(size) if size <= 2 * half else [*range(half), *range(size - half, size)]
        return {index: copy.deepcopy(_task(task_set, index)) for index in indexes}

    def test_it_is_found_and_has_tasks(self, task_set: TaskSet) -> None:
        assert len(task_set) == len(task_set) > 0, "its length changes, or it is empty"

    def test_a_task_is_a_dict_that_json_can_carry(self, rows: dict[int, Task]) -> None:
        for index, row in rows.items():
            fault = unfit(row, f"task {index}")
            assert fault is None, f"JSON cannot carry {fault}"
            try:
                json.dumps(row, allow_nan=False, default=as_number)
            except ValueError:
                pytest.fail(f"task {index} holds a number that is not finite, which JSON cannot carry", pytrace=False)

    def test_an_index_means_the_same_task_every_time(self, task_set: TaskSet, rows: dict[int, Task]) -> None:
        for index in reversed(rows):
            assert task_set[index] == rows[index], f"task {index} is another one the second time"

    def test_loaded_again_it_has_the_same_tasks(self, task_set: TaskSet, rows: dict[int, Task]) -> None:
        again = self.loaded()
        assert len(again) == len(task_set), "loaded again, it has another length"
        for index, row in rows.items():
            assert again[index] == row, f"loaded again, task {index} is another one: a run could not be resumed"

    def test_indexes_are_those_of_a_sequence(self, task_set: TaskSet, rows: dict[int, Task]) -> None:
        size = len(task_set)
        assert task_set[-1] == rows[size - 1]
        for index in (size, size + 7, -size - 1):
            with pytest.raises(IndexError):
                task_set[index]

    def test_a_task_that_is_changed_changes_no_other(self, rows: dict[int, Task]) -> None:
        spoilt = self.loaded()
        _spoil(spoilt[0])
        others = {index: row for index, row in rows.items() if index}
        for index, row in others.items():
            assert spoilt[index] == row, f"task 0 was changed, and task {index} with it: they share an object"
        assert self.loaded()[0] == rows[0], "a task was changed, and it stays changed where the set is loaded again"


def _task(task_set: TaskSet, index: int) -> Task:
    with failing_tests():
        try:
            return task_set[index]
        except IndexError:
            pytest.fail(f"it says that it has {len(task_set)} tasks, and there is no task {index}", pytrace=False)


def _spoil(value: Any) -> None:
    """Change a value of JSON in every place."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _spoil(inner)
    if isinstance(value, dict):
        value["spoilt"] = True
    elif isinstance(value, list):
        value.append("spoilt")
