"""The critic's loss against a float64 calculation, and what a critic needs beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import build

from agentrl.errors import ConfigError
from agentrl.learner.contract import ValueTerms


def critic(updates=2, **keys):
    return build({"name": "ppo", "critic": keys} if keys else "ppo", updates=updates).critic


@pytest.mark.parametrize("clip", [0.3, None])
def test_the_loss_is_that_of_ppos_implementations(clip):
    source = np.random.default_rng(0)
    value, before, target = source.normal(size=(3, 50))
    found = critic(clip=clip)(
        ValueTerms(torch.from_numpy(value), {"value": torch.from_numpy(before), "return": torch.from_numpy(target)})
    )
    expected = (value - target) ** 2 / 2
    if clip is not None:
        expected = np.maximum(expected, (np.clip(value, before - clip, before + clip) - target) ** 2 / 2)
        assert (expected != (value - target) ** 2 / 2).any()
    np.testing.assert_allclose(found.numpy(), expected)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"name": "grpo", "critic": "clip"}, "never asks"),
        ({"name": "ppo", "critic": None}, "without algorithm.critic"),
        ({"name": "ppo", "critic": {"clip": 0.3}}, "a step makes one update"),
        ({"name": "ppo", "advantage": "group"}, "never asks"),
        (
            {"name": "distill", "advantage": {"model": "x"}, "filter": "zero_variance"},
            "compares episodes with more",
        ),
        ({"name": "distill", "advantage": {"model": "x"}, "shaping": [{"name": "scale", "factor": 2}]}, "tokens alone"),
        ({"name": "distill"}, r"algorithm\.advantage\.model is missing"),
    ],
)
def test_what_makes_no_sense_together_is_refused(algorithm, said):
    with pytest.raises(ConfigError, match=said):
        build(algorithm)


def test_a_critic_suits_what_asks_it():
    assert critic(updates=1).learning_rate_factor == 10
    assert critic(updates=1, clip=None)(ValueTerms(torch.zeros(1), {"return": torch.ones(1)})).tolist() == [0.5]
    assert build({"name": "grpo", "advantage": "gae", "critic": "clip"}).columns == ("value",)
