"""The failure budget: a window that slides over the most recent episodes, whatever step they belong to."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import RunError
from agentrl.rollout.contract import EpisodeKey, Failure
from agentrl.rollout.dispatcher import FailureBudget

BOOM = Failure("agent", "boom")


def key(sample):
    return EpisodeKey("train", 3, 0, sample)


def test_the_budget_stops_at_its_share_with_the_commonest_cause_first_and_names_episodes():
    budget = FailureBudget(0.5, 4)
    budget.add(key(0), Failure("agent", "KeyError"))
    budget.add(key(1), BOOM)
    with pytest.raises(
        RunError,
        match=r"3 of the last 3 episodes failed.*commonest: 2x agent: boom \[train-3-0-1\]; 1x agent: KeyErr.*above",
    ):
        budget.add(key(2), BOOM)


def test_a_window_that_fails_whole_is_over_any_budget_and_no_budget_above_all_is_advised():
    with pytest.raises(RunError, match="1 of the last 1") as caught:
        FailureBudget(1.0, 1).add(key(0), BOOM)
    assert caught.value.fix == "mend the cause"


def test_episodes_that_belong_together_and_all_fail_are_over_any_budget_however_few():
    budget = FailureBudget(0.9, 64)
    for sample in range(3):
        budget.add(key(sample), BOOM)
    with pytest.raises(RunError, match=r"3 of 3 episodes failed.*3x agent: boom \[train-3-0-0\].*failure_budget"):
        budget.conclude(3, 3)
    budget.conclude(4, 3)
    budget.conclude(0, 0)


@given(
    st.lists(st.booleans(), max_size=60),
    st.integers(1, 20),
    st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1)),
)
def test_the_budget_looks_at_the_most_recent_episodes_whatever_step_they_belong_to(failed, window, share):
    budget = FailureBudget(share, window)
    for count, fails in enumerate(failed, 1):
        recent = sum(failed[max(0, count - window) : count])
        spent = fails and (recent > share * window or recent == window)
        with pytest.raises(RunError) if spent else contextlib.nullcontext():
            budget.add(key(count), BOOM if fails else None)
