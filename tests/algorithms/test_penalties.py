"""Penalties against float64 calculations, and their expectations against sums over a whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import grpo

from agentrl.errors import ConfigError
from agentrl.learner.contract import PenaltyTerms


def penalty(**keys):
    (built,) = grpo(penalties=[keys]).penalties
    return built


def terms(logprob, reference, entropy=None):
    nothing = torch.zeros_like(logprob)
    return PenaltyTerms(logprob, nothing if entropy is None else entropy, nothing, {"reference": reference})


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimates_are_schulmans(estimator):
    logprob, reference = np.array([-0.1, -3.0, -2.0, -50.0]), np.array([-0.3, -1.0, -2.0, -1.0])
    ratio = np.clip(reference - logprob, -20, 20)
    expected = {"k1": -ratio, "k2": ratio**2 / 2, "k3": np.exp(ratio) - 1 - ratio}[estimator]
    found = penalty(name="kl", estimator=estimator)(terms(torch.from_numpy(logprob), torch.from_numpy(reference)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("estimator", "reverse"), [("k1", False), ("k2", False), ("k3", True)])
def test_expected_gradients_are_those_of_the_divergence(estimator, reverse):
    source = torch.Generator().manual_seed(3)
    logits, other = (torch.randn(7, dtype=torch.float64, generator=source) for _ in range(2))
    logits.requires_grad_(True)
    logprob, reference = torch.log_softmax(logits, 0), torch.log_softmax(other, 0)
    of_each = penalty(name="kl", estimator=estimator)(terms(logprob, reference))
    (found,) = torch.autograd.grad((logprob.detach().exp() * of_each).sum(), logits)
    logprob = torch.log_softmax(logits, 0)
    divergence = reference.exp() * (reference - logprob) if reverse else logprob.exp() * (logprob - reference)
    (expected,) = torch.autograd.grad(divergence.sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_entropy_bonus_lowers_the_loss():
    bonus, entropy = penalty(name="entropy", coefficient=0.5), torch.tensor([0.3, math.log(7)])
    assert bonus.coefficient == -0.5
    assert torch.equal(bonus(terms(entropy, entropy, entropy)), entropy)
    assert grpo(penalties=["entropy"]).columns == ()
    assert grpo(penalties=["kl", "entropy"]).columns == ("reference",)


def test_two_penalties_of_one_metric_are_refused():
    with pytest.raises(ConfigError, match="reports penalty/kl too"):
        grpo(penalties=["kl", "entropy", {"name": "kl", "estimator": "k1"}])


@pytest.mark.parametrize("keys", [{"estimator": "k4"}, {"coefficient": -1}, {"coeficient": 1}])
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ConfigError):
        penalty(name="kl", **keys)
