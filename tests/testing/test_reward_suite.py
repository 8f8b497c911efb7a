"""A reward that breaks a promise fails the test that names it, and a sound one fails none."""

from __future__ import annotations

import pytest
from tests.testing.conftest import Failures

ANY, ONE = "test_any_answer_is_worth_a_number_or_is_refused", "test_an_answer_is_worth_a_number"
SAME, ALONE = "test_an_answer_is_worth_the_same_again", "test_it_leaves_answer_and_task_alone"
TELLS = "test_right_answers_are_worth_more_than_wrong_ones"

ATTRIBUTES = """\
reward = "tests.testing.broken_rewards:{name}"
timeout = 0.5
right = (("It is 42.", {{"answer": "42"}}),)
wrong = (("It is 24.", {{"answer": "42"}}), ("", {{"answer": "42"}}))
"""


@pytest.mark.parametrize("name", ["sound", "sound_too"])
def test_a_sound_reward_fails_none(failures: Failures, name: str) -> None:
    assert failures("RewardConformance", ATTRIBUTES.format(name=name)) == {}


@pytest.mark.parametrize(
    ("name", "select", "failed", "told"),
    [
        ("strict", "not more", {ANY, ALONE}, "no finite number and no RewardError of its own: the reward raised"),
        ("moody", "same", {SAME}, "and the next time"),
        ("marking", "alone", {ALONE}, "it changed the task"),
        ("finishing", "alone", {ALONE}, "it changed the answer"),
        ("upside_down", "", {TELLS}, "is worth 0.0, and the wrong one"),
        ("wordy", ONE, {ONE}, "the reward returned 'good'"),
        ("infinite", ONE, {ONE}, "the reward returned inf"),
        ("hanging", f"{ANY} and text", {ANY}, "did not end within 0.5 s; its event loop is blocked at"),
        ("waiting", f"{ANY} and text", {ANY}, "did not end within 0.5 s; it waits"),
    ],
)
def test_a_broken_promise_fails_its_test(
    failures: Failures, name: str, select: str, failed: set[str], told: str
) -> None:
    found = failures("RewardConformance", ATTRIBUTES.format(name=name), select)
    assert set(found) == failed
    assert any(told in message for message in found.values())


def test_a_reward_that_does_not_exist_is_named(failures: Failures) -> None:
    found = failures("RewardConformance", 'reward = "exact-mach"', ONE)
    assert "did you mean 'exact-match'" in found[ONE]
