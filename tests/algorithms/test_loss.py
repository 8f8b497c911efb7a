"""Normalisation, correction and objective against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.contract import Membership
from agentrl.algorithms.corrections import RatioCorrection, TruncatedCorrection
from agentrl.algorithms.normalisation import ConstantNormalisation, SequenceNormalisation, TokenNormalisation
from agentrl.algorithms.objectives import ClipObjective
from agentrl.learner.contract import CorrectionTerms, ObjectiveTerms

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


def ppo(ratio, advantage, low, high, dual):
    """The surrogate as the papers write it, for one token."""
    surrogate = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return -max(surrogate, dual * advantage) if dual is not None and advantage < 0 else -surrogate


@given(
    st.floats(0.01, 8.0),
    st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]),
    st.floats(0, 0.9),
    st.floats(0, 2),
    st.sampled_from([None, 1.5, 3.0]),
)
def test_the_clipped_surrogate_and_where_its_gradient_stops(ratio, advantage, low, high, dual):
    objective = ClipObjective(ClipObjective.Settings(clip_low=low, clip_high=high, dual_clip=dual))
    anchor = torch.tensor([-1.0], dtype=torch.float64)
    logprob = (anchor + math.log(ratio)).requires_grad_()
    advantages, call = torch.tensor([advantage], dtype=torch.float64), torch.tensor([0])
    made = objective(ObjectiveTerms(logprob, anchor, advantages, call, behaviour=anchor))
    assert float(made.loss.detach()) == pytest.approx(ppo(ratio, advantage, low, high, dual))
    (gradient,) = torch.autograd.grad(made.loss.sum(), logprob)
    stopped = advantage != 0 and float(gradient) == 0.0
    near_an_edge = min(abs(ratio - edge) for edge in (1 - low, 1 + high, dual or 99.0)) < 1e-9
    assert bool(made.clipped) == stopped or near_an_edge


def terms(learner, sampler):
    return CorrectionTerms(
        torch.tensor(learner), torch.tensor(sampler), torch.zeros(len(learner)), torch.arange(len(learner))
    )


def test_by_default_the_ratio_is_against_the_sampler():
    anchor = RatioCorrection()(terms([-1.0, -2.0], [-1.5, -2.5]))
    assert anchor.logprob.tolist() == [-1.5, -2.5]
    assert anchor.weight.tolist() == [1.0, 1.0]


def test_a_truncated_weight_makes_up_for_the_difference_up_to_its_cap():
    anchor = TruncatedCorrection(TruncatedCorrection.Settings(cap=2.0))(terms([-1.0, -1.0, -1.0], [-1.0, 0.0, -9.0]))
    assert anchor.logprob.tolist() == [-1.0, -1.0, -1.0]
    assert anchor.weight.tolist() == pytest.approx([1.0, math.exp(-1), 2.0])
