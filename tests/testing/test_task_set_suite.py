"""A task set that breaks a promise fails the test that names it, and a sound one fails none."""

from __future__ import annotations

import pytest
from tests.testing.conftest import Failures

PLAIN = "test_a_task_is_a_dict_that_json_can_carry"
SAME, AGAIN = "test_an_index_means_the_same_task_every_time", "test_loaded_again_it_has_the_same_tasks"
OWN = "test_a_task_that_is_changed_changes_no_other"


def named(name: str) -> str:
    return f'tasks = "tests.testing.broken_task_sets:{name}"'


def test_a_sound_task_set_fails_none(failures: Failures) -> None:
    assert failures("TaskSetConformance", named("sound")) == {}


@pytest.mark.parametrize(
    ("name", "select", "failed", "told"),
    [
        ("strange", "", {PLAIN}, "JSON cannot carry task 0['day'], a date"),
        ("numbered", "", {PLAIN}, "JSON cannot carry the key 1 of task 0['choices'], a int"),
        ("unbounded", PLAIN, {PLAIN}, "task 0 holds a number that is not finite"),
        ("Random", SAME, {SAME}, "is another one the second time"),
        ("drifting", AGAIN, {AGAIN}, "loaded again, task 0 is another one"),
        ("sharing", "", {OWN}, "task 0 was changed, and task 1 with it"),
        ("kept", OWN, {OWN}, "stays changed where the set is loaded again"),
        ("Lying", PLAIN, {PLAIN}, "it says that it has 5 tasks, and there is no task 3"),
        ("rows", PLAIN, {PLAIN}, "a task is a dict"),
    ],
)
def test_a_broken_promise_fails_its_test(
    failures: Failures, name: str, select: str, failed: set[str], told: str
) -> None:
    found = failures("TaskSetConformance", named(name), select)
    assert set(found) == failed
    assert any(told in message for message in found.values())
