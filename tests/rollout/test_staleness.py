"""The rule of staleness: which versions an episode may hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.rollout.staleness import oldest_version

versions = st.integers(0, 1000)
bounds = st.integers(0, 20)


@given(versions)
def test_without_staleness_all_tokens_are_of_the_newest_version(version):
    assert oldest_version(version, 0) == version


@given(versions, bounds)
def test_the_oldest_version_is_at_most_so_many_older_and_as_old_as_the_bound_and_the_first_version_let_it(
    version, bound
):
    oldest = oldest_version(version, bound)
    assert 0 <= oldest <= version
    assert version - oldest == min(bound, version)


@given(versions, bounds)
def test_a_wider_bound_takes_no_less(version, bound):
    assert oldest_version(version, bound + 1) <= oldest_version(version, bound)


@pytest.mark.parametrize(("version", "bound", "oldest"), [(0, 0, 0), (0, 3, 0), (2, 3, 0), (7, 3, 4)])
def test_there_is_no_version_before_the_first(version, bound, oldest):
    assert oldest_version(version, bound) == oldest
