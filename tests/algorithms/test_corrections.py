"""Corrections against their formulas, term by term in plain numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.algorithms.loss_terms import Term, Terms, terms

from agentrl.algorithms.corrections import (
    DecoupledCorrection,
    IcePopCorrection,
    MaskedCorrection,
    RatioCorrection,
    TruncatedCorrection,
)

levels = st.sampled_from(["token", "sequence"])
caps = st.sampled_from([0.5, 1.0, 1.3, 2.0, 50.0])


def weight_of(term: Term, all_terms: Terms, level: str) -> float:
    """The importance weight as it is defined: a ratio of probabilities, of the token or of all of its call."""
    tokens = [term] if level == "token" else all_terms.of_call(term.call)
    return math.prod(math.exp(each.learner) / math.exp(each.behaviour) for each in tokens)


def assert_anchor(anchor, logprobs, weights):
    assert anchor.logprob.tolist() == pytest.approx(list(logprobs), rel=1e-12)
    assert anchor.weight.tolist() == pytest.approx(list(weights), rel=1e-9)


def near(value: float, bound: float) -> bool:
    return math.isclose(value, bound, rel_tol=1e-9)


@given(terms())
def test_by_default_the_ratio_is_against_the_sampler(given_):
    anchor = RatioCorrection()(given_.correction())
    assert_anchor(anchor, [term.behaviour for term in given_.each], [1.0] * len(given_.each))


@given(terms(), caps, levels)
def test_a_truncated_weight_makes_up_for_the_difference_up_to_its_cap(given_, cap, level):
    correction = TruncatedCorrection(TruncatedCorrection.Settings(cap=cap, level=level))
    weights = [min(weight_of(term, given_, level), cap) for term in given_.each]
    assert_anchor(correction(given_.correction()), [term.learner for term in given_.each], weights)


@given(terms(), caps, levels)
def test_a_masked_weight_is_whole_or_nothing(given_, cap, level):
    correction = MaskedCorrection(MaskedCorrection.Settings(cap=cap, level=level))
    weights = [weight_of(term, given_, level) for term in given_.each]
    if not any(near(weight, cap) for weight in weights):
        kept = [weight if weight <= cap else 0.0 for weight in weights]
        assert_anchor(correction(given_.correction()), [term.learner for term in given_.each], kept)


@given(terms(), st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([1.1, 5.0]))
def test_icepop_masks_on_both_sides(given_, low, high):
    correction = IcePopCorrection(IcePopCorrection.Settings(low=low, high=high))
    weights = [weight_of(term, given_, "token") for term in given_.each]
    if not any(near(weight, bound) for weight in weights for bound in (low, high)):
        kept = [weight if low <= weight <= high else 0.0 for weight in weights]
        assert_anchor(correction(given_.correction()), [term.learner for term in given_.each], kept)


@given(terms(), caps)
def test_a_recomputed_proximal_policy_is_the_learner_before_its_update(given_, cap):
    decoupled = DecoupledCorrection(DecoupledCorrection.Settings(cap=cap))
    truncated = TruncatedCorrection(TruncatedCorrection.Settings(cap=cap))
    found, expected = decoupled(given_.correction()), truncated(given_.correction())
    assert_anchor(found, expected.logprob.tolist(), expected.weight.tolist())


def proximal(term: Term) -> float:
    """One version before the learner's, on the straight line from the sampler's version to it."""
    if term.age == 0:
        return term.learner
    return (term.behaviour + (term.age - 1) * term.learner) / term.age


@given(terms(), caps)
def test_an_interpolated_proximal_policy_is_one_version_old(given_, cap):
    correction = DecoupledCorrection(DecoupledCorrection.Settings(proximal="interpolated", cap=cap))
    anchors = [proximal(term) for term in given_.each]
    weights = [min(math.exp(at - term.behaviour), cap) for at, term in zip(anchors, given_.each, strict=True)]
    assert_anchor(correction(given_.correction()), anchors, weights)


def test_of_tokens_that_one_version_sampled_the_interpolated_policy_is_their_sampler():
    correction = DecoupledCorrection(DecoupledCorrection.Settings(proximal="interpolated"))
    assert_anchor(correction(Terms([Term(-1.0, -2.0, 1.0, 1, 0)]).correction()), [-2.0], [1.0])


def test_a_weight_of_a_long_answer_is_never_infinite():
    given_ = Terms([Term(-0.1, -500.0, 1.0, 0, 0)] * 3)
    for level in ("token", "sequence"):
        truncated = TruncatedCorrection(TruncatedCorrection.Settings(level=level))(given_.correction())
        masked = MaskedCorrection(MaskedCorrection.Settings(level=level))(given_.correction())
        assert truncated.weight.tolist() == [2.0] * 3
        assert masked.weight.tolist() == [0.0] * 3
