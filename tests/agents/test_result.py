"""Every return value that the agent contract names, and those it does not."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.numbers_and_others import REFUSED

from agentrl.agents.result import as_result
from agentrl.errors import AgentError


@pytest.mark.parametrize(
    "one",
    [
        1,
        True,
        1.0,
        np.float32(1),
        np.int64(1),
        np.bool_(True),
        np.array(1.0),
        torch.tensor(1.0),
        Decimal(1),
        Fraction(1),
    ],
)
def test_every_real_number_type_is_a_reward(one):
    result = as_result(one, [])
    assert result == 1.0
    assert type(result) is float
    assert as_result({"call": one}, ["call"]) == {"call": 1.0}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_float_passes_unchanged(reward):
    assert as_result(reward, []) == reward


def test_none_is_rejected():
    assert as_result(None, ["call"]) is None


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_the_agents_error(bad):
    with pytest.raises(AgentError, match="the agent returned"):
        as_result(bad, [])
    with pytest.raises(AgentError, match=r"the agent returned .* for call 'c'"):
        as_result({"c": bad}, ["c"])


@pytest.mark.parametrize("rewards", [(1e308, 1e308), (1e308, -1e308, 1e308)])
def test_rewards_of_calls_that_no_float_can_add_up_are_the_agents_error(rewards):
    by_call = {f"c{index}": reward for index, reward in enumerate(rewards)}
    with pytest.raises(AgentError, match="sum is infinite"):
        as_result(by_call, list(by_call))


def test_a_reward_for_an_unknown_call_names_the_near_ones():
    with pytest.raises(AgentError, match=r"'chatcmpl-11'.*did you mean 'chatcmpl-1'"):
        as_result({"chatcmpl-11": 1.0}, ["chatcmpl-1"])


def test_an_empty_dict_is_refused_with_the_fix():
    with pytest.raises(AgentError, match="return None"):
        as_result({}, [])


def test_a_call_with_no_number_is_named():
    with pytest.raises(AgentError, match=r"for call 'c'"):
        as_result({"c": "good"}, ["c"])
