"""The rewards that are built in: what each takes for the truth, and what it takes for right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config.models import Config
from agentrl.errors import ConfigError, RewardError
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rewards.matching import NumericMatch, last_number
from agentrl.rollout.contract import EpisodeKey, EpisodeView

VIEW = EpisodeView(EpisodeKey("eval", 0, 0, 0), ())


def load(part: object) -> Callable[..., Any]:
    part = Config(reward=part).reward
    assert part is not None
    return load_reward(Plugins(), part)


def score(part: object, answer: object, /, **data: object) -> float:
    return asyncio.run(call_reward(load(part), answer, data, VIEW))


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("85", "85", True),
        (" 85\n", "85", True),
        (85, "85", True),
        ("85", 85, True),
        ("It is 85", "85", False),
        ("Paris", "paris", False),
        (None, "85", False),
    ],
)
def test_exact_match_compares_text_but_for_the_space_around_it(answer: object, truth: object, right: bool) -> None:
    assert score("exact-match", answer, answer=truth) == right


def test_exact_match_can_ignore_case_and_take_another_field() -> None:
    part = {"name": "exact-match", "ignore_case": True, "field": "city"}
    assert score(part, "PARIS", city="Paris", answer="Rome") == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 85.", 85),
        ("3 + 4 = 7", 7),
        ("1,234,567", 1234567),
        ("2, 3", 3),
        ("1,23", 23),
        ("-5", -5),
        ("x = −5", -5),
        ("10-5", 5),
        ("10 - 5", 5),
        ("minus (-5)", -5),
        ("$0.50", 0.5),
        (".5 of it", 0.5),
        ("1.5e3 m", 1500),
        ("007", 7),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number_is_read_as_people_write_it(text: str, number: float | None) -> None:
    found = last_number(text)
    assert (found is None) == (number is None)
    assert number is None or float(found or 0) == number


@given(st.integers(), st.text(alphabet="abc .,:;!?\n"))
def test_any_integer_is_found_behind_any_words(number: int, words: str) -> None:
    assert last_number(f"{words} {number}.") == number


@given(st.text(alphabet="0123456789.,-−eE+ x$"), st.floats(0, 10))
def test_no_text_is_too_strange_to_be_compared(text: str, tolerance: float) -> None:
    reward = NumericMatch(NumericMatch.Settings(tolerance=tolerance))
    assert reward(text, {"answer": "85"}) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("The sum is 1,200.", "1200", True),
        ("1200.00", "1200", True),
        ("First 1200, then 5", "1200", False),
        (1200, 1200, True),
        ("none", "1200", False),
        (None, "1200", False),
        ("18", "He pays 9 + 9 = 18", True),
    ],
)
def test_numeric_match_compares_the_last_numbers(answer: object, truth: object, right: bool) -> None:
    assert score("numeric-match", answer, answer=truth) == right


def test_numeric_match_has_a_tolerance() -> None:
    part = {"name": "numeric-match", "tolerance": 0.01}
    assert score(part, "3.14", answer="3.1415") == 1
    assert score(part, "3.1", answer="3.1415") == 0


def test_a_truth_without_a_number_is_a_fault_of_the_task() -> None:
    with pytest.raises(RewardError, match="'Paris' in the task's field 'answer' holds no number"):
        score("numeric-match", "3", answer="Paris")


@pytest.mark.parametrize("name", ["exact-match", "numeric-match", "math-verify", {"name": "regex", "pattern": "a"}])
def test_a_task_whose_truth_is_null_is_refused_and_no_text_is_right(name: object) -> None:
    for answer in ("None", "null", ""):
        with pytest.raises(RewardError, match=r"'answer' is null: there is no truth"):
            score(name, answer, answer=None)


@pytest.mark.parametrize("name", ["exact-match", "numeric-match", "math-verify", {"name": "regex", "pattern": "a"}])
def test_a_task_without_the_truth_is_refused_by_field_name(name: object) -> None:
    with pytest.raises(RewardError, match=r"no field 'answer' .* only 'question'"):
        score(name, "3", question="2 + 1?")


@pytest.mark.parametrize(
    ("keys", "answer", "right"),
    [
        ({"pattern": r"\\boxed\{(.*?)\}"}, r"so \boxed{85} it is", True),
        ({"pattern": r"\\boxed\{(.*?)\}"}, "85", False),
        ({"pattern": r"\d+"}, "12 then 85", True),
        ({"pattern": r"\d+", "take": "first"}, "12 then 85", False),
        ({"pattern": "thank", "field": None}, "thanks", True),
        ({"pattern": "thank", "field": None}, "no", False),
        ({"pattern": "(x)?85"}, "85", False),
    ],
)
def test_regex_compares_what_it_finds(keys: dict[str, object], answer: str, right: bool) -> None:
    assert score({"name": "regex", **keys}, answer, answer="85") == right


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "regex", "pattern": "("}, "not a regular expression"),
        ("regex", "reward.pattern is missing"),
        ({"name": "exact-match", "feild": "x"}, "did you mean 'field'"),
        ({"name": "numeric-match", "tolerance": -1}, "reward.tolerance"),
        ({"name": "math-verify", "timeout": 0}, "reward.timeout"),
        ("exact-macth", "did you mean 'exact-match'"),
    ],
)
def test_a_wrong_name_or_key_is_explained(part: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(part)
