"""A reward with parts is a number wherever one is wanted, and carries its parts everywhere."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from tests.agents.numbers_and_others import NO_NUMBERS, REFUSED

import agentrl
from agentrl.agents.result import Reward, as_result, parts_of, sums_of_parts


def test_it_is_a_number():
    reward = Reward(0.7, format=1, correct=0.4)
    assert reward == 0.7
    assert reward + 1 == pytest.approx(1.7)
    assert json.dumps(reward) == "0.7"
    assert as_result(reward, []) == 0.7
    assert reward.parts == {"format": 1.0, "correct": 0.4}
    assert repr(reward) == "Reward(0.7, format=1.0, correct=0.4)"
    assert agentrl.Reward is Reward


def test_a_plain_number_has_no_parts():
    assert parts_of(0.7) == parts_of(Reward(0.7)) == {}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
def test_a_copy_keeps_the_parts(copied):
    again = copied(Reward(0.7, format=1.0))
    assert (again, again.parts) == (0.7, {"format": 1.0})


def test_parts_cannot_be_changed_behind_its_back():
    with pytest.raises(TypeError):
        Reward(0.7, format=1.0).parts["format"] = 2.0


def test_parts_of_several_rewards_add_up_by_name():
    assert sums_of_parts([Reward(1, a=1, b=2), 0.5, Reward(0, b=3)]) == {"a": 1.0, "b": 5.0}


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_no_number_is_no_reward(value):
    with pytest.raises(TypeError, match="a reward is a number"):
        Reward(value)


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_a_part_is_a_finite_number(value):
    with pytest.raises((TypeError, ValueError), match="part 'format' of a reward"):
        Reward(1.0, format=value)
