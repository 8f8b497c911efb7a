"""Generated arithmetic: what is asked is right, repeats for a seed, and never crosses the split."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.config.models import TasksSection
from agentrl.errors import ConfigError
from agentrl.plugins import Plugins
from agentrl.tasks import TaskSet, load_tasks
from agentrl.tasks.arithmetic import is_held_out


def load(**keys: object) -> TaskSet:
    return load_tasks(Plugins(), TasksSection(train=keys).train)


def operands(task: dict[str, str]) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", task["question"])))


@pytest.mark.parametrize("symbol", ["+", "-", "*"])
def test_the_answer_is_what_the_question_asks_for(symbol: str) -> None:
    for task in load(name="arithmetic", operators=[symbol], size=50):
        left, right = operands(task)
        assert int(task["answer"]) == {"+": left + right, "-": left - right, "*": left * right}[symbol]
        assert f"{left} {symbol} {right}" in task["question"]


def test_operands_have_the_digits_that_were_asked_for() -> None:
    assert all(100 <= operand <= 999 for task in load(name="arithmetic", digits=3) for operand in operands(task))


def test_the_default_sets_are_large_enough_for_the_quickstart() -> None:
    assert len(load(name="arithmetic")) >= 60 * 8
    assert len(load(name="arithmetic-heldout")) >= 128


@settings(max_examples=25, deadline=None)
@given(st.integers(-5, 5), st.integers(1, 100))
def test_a_seed_gives_the_same_distinct_tasks_each_time(seed: int, size: int) -> None:
    tasks = list(load(name="arithmetic", seed=seed, size=size))
    assert tasks == list(load(name="arithmetic", seed=seed, size=size))
    assert len({task["question"] for task in tasks}) == size


def test_another_seed_gives_other_tasks() -> None:
    assert list(load(name="arithmetic", seed=1)) != list(load(name="arithmetic", seed=2))


@pytest.mark.parametrize(("digits", "size"), [(1, 14), (2, 1058), (3, 5000)])
def test_no_pair_of_operands_is_both_trained_and_held_out(digits: int, size: int) -> None:
    held_out = load(name="arithmetic-heldout", digits=digits, size=size)
    trained = load(name="arithmetic", digits=digits, size=86 if digits == 1 else 5000, seed=1, operators=["+"])
    pairs = [{tuple(sorted(operands(task))) for task in tasks} for tasks in (held_out, trained)]
    assert not pairs[0] & pairs[1]


@given(st.lists(st.integers(0, 999), min_size=2, max_size=2))
def test_the_order_of_operands_does_not_move_a_problem_across_the_split(pair: list[int]) -> None:
    assert is_held_out(pair) == is_held_out(reversed(pair))


def test_more_tasks_than_there_are_is_an_error_that_says_how_many() -> None:
    with pytest.raises(ConfigError, match=r"arithmetic-heldout with digits=1 has 14 tasks, not size=15"):
        load(name="arithmetic-heldout", digits=1, size=15)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"digit": 2}, r"there is no key 'tasks.digit' \(did you mean 'digits'"),
        ({"size": "many"}, "tasks.size"),
        ({"digits": 0}, "tasks.digits"),
        ({"operators": ["/"]}, "tasks.operators"),
    ],
)
def test_a_wrong_key_is_named(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(name="arithmetic", **keys)
