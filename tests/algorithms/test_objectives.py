"""Objectives against their formulas, and their gradients against differences, term by term in plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.algorithms.loss_terms import Term, Terms, terms

from agentrl.algorithms.objectives import (
    CispoObjective,
    ClipObjective,
    DppoObjective,
    GspoObjective,
    LikelihoodObjective,
    ReinforceObjective,
)


def ppo(ratio, advantage, low, high, dual):
    """The surrogate as the papers write it, for one token."""
    surrogate = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return -max(surrogate, dual * advantage) if dual is not None and advantage < 0 else -surrogate


def made_of(objective, given_):
    """The loss of each term, the gradient of their sum by each log-probability, and where that was cut off."""
    logprob, passed = given_.objective()
    made = objective(passed)
    (gradient,) = torch.autograd.grad(made.loss.sum(), logprob)
    return made.loss.tolist(), gradient.tolist(), made.clipped.tolist()


def ratio_of(term: Term) -> float:
    return math.exp(term.learner - term.behaviour)


bounds = (st.floats(0, 0.9), st.floats(0, 2))
ratios = st.floats(0.01, 8.0)
advantages = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0])


@given(ratios, advantages, *bounds, st.sampled_from([None, 1.5, 3.0]))
def test_the_clipped_surrogate_and_where_its_gradient_stops(ratio, advantage, low, high, dual):
    objective = ClipObjective(ClipObjective.Settings(clip_low=low, clip_high=high, dual_clip=dual))
    given_ = Terms([Term(-3.0 + math.log(ratio), -3.0, advantage, 0, 0)])
    (loss,), (gradient,), (clipped,) = made_of(objective, given_)
    assert loss == pytest.approx(ppo(ratio, advantage, low, high, dual))
    stopped = advantage != 0 and gradient == 0.0
    near_an_edge = min(abs(ratio - edge) for edge in (1 - low, 1 + high, dual or 99.0)) < 1e-9
    assert clipped == stopped or near_an_edge


@given(terms(), *bounds)
def test_gspo_is_the_surrogate_of_the_geometric_mean_of_a_calls_ratios(given_, low, high):
    objective = GspoObjective(GspoObjective.Settings(clip_low=low, clip_high=high))
    losses, gradients, clipped = made_of(objective, given_)
    for term, loss, gradient, cut in zip(given_.each, losses, gradients, clipped, strict=True):
        call = given_.of_call(term.call)
        sequence = math.prod(map(ratio_of, call)) ** (1 / len(call))
        if min(abs(sequence - edge) for edge in (1 - low, 1 + high)) < 1e-9:
            continue
        assert loss == pytest.approx(ppo(sequence, term.advantage, low, high, None))
        outside = (term.advantage > 0 and sequence > 1 + high) or (term.advantage < 0 and sequence < 1 - low)
        assert cut == outside
        # The sum over the call's tokens is n times its surrogate, each of whose log-probabilities moves 1/n of log s.
        assert gradient == pytest.approx(0.0 if outside else -sequence * term.advantage)


@given(terms(), st.floats(1.01, 5.0), st.floats(0.0, 0.99))
def test_cispo_weighs_every_token_and_cuts_none_off(given_, cap, floor):
    objective = CispoObjective(CispoObjective.Settings(cap=cap, floor=floor))
    losses, gradients, _ = made_of(objective, given_)
    for term, loss, gradient in zip(given_.each, losses, gradients, strict=True):
        weight = min(max(ratio_of(term), floor), cap)
        assert loss == pytest.approx(-weight * term.advantage * term.learner)
        assert gradient == pytest.approx(-weight * term.advantage)


def binary(divergence, term):
    """Of the distributions (a, everything else) of the sampled token ``a``, as the paper defines both divergences."""
    sampler, learner = math.exp(term.behaviour), math.exp(term.learner)
    if divergence == "tv":
        return abs(sampler - learner)
    pairs = [(sampler, learner), (1 - sampler, 1 - learner)]
    return sum(p * math.log(p / q) for p, q in pairs)


@given(terms(), st.sampled_from(["tv", "kl"]), st.floats(1e-4, 0.3))
def test_dppo_leaves_out_what_leads_out_of_the_trust_region(given_, divergence, threshold):
    objective = DppoObjective(DppoObjective.Settings(divergence=divergence, threshold=threshold))
    losses, gradients, clipped = made_of(objective, given_)
    for term, loss, gradient, cut in zip(given_.each, losses, gradients, clipped, strict=True):
        ratio, far = ratio_of(term), binary(divergence, term)
        if math.isclose(far, threshold, rel_tol=1e-6) or math.isclose(ratio, 1.0, rel_tol=1e-9):
            continue
        away = (term.advantage > 0 and ratio > 1) or (term.advantage < 0 and ratio < 1)
        masked = away and far > threshold
        assert cut == masked
        assert loss == pytest.approx(0.0 if masked else -ratio * term.advantage)
        assert gradient == pytest.approx(0.0 if masked else -ratio * term.advantage)


def test_dppo_asks_probabilities_and_not_ratios():
    rare, likely = Term(math.log(1e-2), math.log(1e-4), 1.0, 0, 0), Term(math.log(0.8), math.log(0.99), -1.0, 0, 1)
    _, _, cut = made_of(DppoObjective(DppoObjective.Settings()), Terms([rare, likely]))
    assert cut == [False, True]
    _, _, cut = made_of(ClipObjective(ClipObjective.Settings()), Terms([rare, likely]))
    assert cut == [True, False]


def test_a_certain_token_has_a_finite_divergence():
    given_ = Terms([Term(-1.0, 0.0, -1.0, 0, 0), Term(0.0, -1.0, 1.0, 0, 1)])
    losses, gradients, cut = made_of(DppoObjective(DppoObjective.Settings(divergence="kl")), given_)
    assert all(map(math.isfinite, [*losses, *gradients]))
    assert cut == [True, True]


@given(terms())
def test_reinforce_is_the_plain_policy_gradient(given_):
    losses, gradients, cut = made_of(ReinforceObjective(), given_)
    assert losses == pytest.approx([-term.advantage * term.learner for term in given_.each])
    assert gradients == pytest.approx([-term.advantage for term in given_.each])
    assert not any(cut)


@given(terms())
def test_likelihood_imitates_whatever_has_an_advantage(given_):
    losses, gradients, cut = made_of(LikelihoodObjective(), given_)
    assert losses == pytest.approx([-term.learner if term.advantage else 0.0 for term in given_.each])
    assert gradients == pytest.approx([-1.0 if term.advantage else 0.0 for term in given_.each])
    assert not any(cut)


OBJECTIVES = [
    ClipObjective(ClipObjective.Settings()),
    GspoObjective(GspoObjective.Settings(clip_low=0.3, clip_high=0.3)),
    CispoObjective(CispoObjective.Settings()),
    DppoObjective(DppoObjective.Settings()),
    ReinforceObjective(),
    LikelihoodObjective(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
@given(given_=terms(), order=st.randoms())
def test_neither_the_order_of_terms_nor_those_without_advantage_matter(objective, given_, order):
    """A pass without advantages has no gradient, and a call's terms may lie anywhere in it."""
    _, gradients, _ = made_of(objective, given_)
    assert all(gradient == 0 for term, gradient in zip(given_.each, gradients, strict=True) if not term.advantage)
    at = list(range(len(given_.each)))
    order.shuffle(at)
    _, shuffled, _ = made_of(objective, Terms([given_.each[index] for index in at]))
    assert shuffled == pytest.approx([gradients[index] for index in at])


@pytest.mark.parametrize("objective", OBJECTIVES[:4], ids=lambda objective: type(objective).__name__)
def test_at_the_sampler_every_objective_is_the_plain_policy_gradient(objective):
    given_ = Terms([Term(-0.5 - index, -0.5 - index, (-1.0) ** index, 0, index // 2) for index in range(6)])
    _, gradients, cut = made_of(objective, given_)
    assert gradients == pytest.approx([-term.advantage for term in given_.each])
    assert not any(cut)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
@pytest.mark.parametrize("learner", [-1e4, -1e-6])
def test_a_log_probability_that_is_wrong_has_a_finite_loss(objective, learner):
    given_ = Terms([Term(learner, -5e3, advantage, 0, 0) for advantage in (-1.0, 1.0)])
    losses, gradients, _ = made_of(objective, given_)
    assert all(map(math.isfinite, [*losses, *gradients]))
