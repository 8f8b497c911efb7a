"""Normalisation against its formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.contract import Membership
from agentrl.algorithms.normalisation import ConstantNormalisation, SequenceNormalisation, TokenNormalisation

memberships = st.lists(st.integers(0, 4), min_size=1, max_size=30).map(
    lambda episodes: Membership(np.array(sorted(episodes)), np.arange(len(episodes)))
)


@given(memberships)
def test_sequences_weigh_the_same_and_their_tokens_share(membership):
    weights = SequenceNormalisation()(membership)
    episodes = np.unique(membership.episode)
    for episode in episodes:
        of_it = weights[membership.episode == episode]
        assert of_it.sum() == pytest.approx(1 / len(episodes))
        assert np.ptp(of_it) == 0


@given(memberships)
def test_tokens_weigh_the_same(membership):
    weights = TokenNormalisation()(membership)
    assert weights.sum() == pytest.approx(1.0)
    assert np.ptp(weights) == 0


def test_a_constant_length_does_not_favour_short_answers():
    weights = ConstantNormalisation(ConstantNormalisation.Settings(length=10))(
        Membership(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1]))
    )
    assert weights.tolist() == [0.05] * 4


@pytest.mark.parametrize(
    "part",
    [SequenceNormalisation(), TokenNormalisation(), ConstantNormalisation(ConstantNormalisation.Settings(length=2))],
)
def test_a_step_without_terms_has_no_weights(part):
    nothing = np.zeros(0, dtype=np.int64)
    assert part(Membership(nothing, nothing)).shape == (0,)
