"""The rule of staleness: which versions an episode may hold, and whether a step can still train it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.rollout.staleness import is_trainable, oldest_version

versions = st.integers(0, 1000)
bounds = st.integers(0, 20)


@given(versions)
def test_without_staleness_all_tokens_are_of_the_newest_version(version):
    assert oldest_version(version, 0) == version
    assert is_trainable(version, version + 1, 0)
    assert not is_trainable(version, version + 2, 0)


@given(versions, bounds)
def test_what_a_session_may_hold_the_next_step_may_train(version, bound):
    oldest = oldest_version(version, bound)
    assert 0 <= oldest <= version
    assert is_trainable(oldest, version + 1, bound)


@given(versions, st.integers(1, 1000), bounds)
def test_a_step_trains_what_is_at_most_so_many_versions_older_than_its_weights(oldest, step, bound):
    assert is_trainable(oldest, step, bound) == (step - 1 - oldest <= bound)


@given(versions, st.integers(1, 1000), bounds)
def test_what_is_too_old_stays_too_old_and_a_wider_bound_takes_no_less(oldest, step, bound):
    if not is_trainable(oldest, step, bound):
        assert not is_trainable(oldest, step + 1, bound)
    else:
        assert is_trainable(oldest, step, bound + 1)


@pytest.mark.parametrize(("version", "bound", "oldest"), [(0, 0, 0), (0, 3, 0), (2, 3, 0), (7, 3, 4)])
def test_there_is_no_version_before_the_first(version, bound, oldest):
    assert oldest_version(version, bound) == oldest
