"""Generalised advantages against a calculation by their definition, one token after another."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import Recorder, chain, wandering_groups

from agentrl.algorithms.batch import build_batch, compare, cover
from agentrl.algorithms.contract import TokenTerms
from agentrl.errors import ConfigError
from agentrl.rollout.contract import Group

VOCABULARY = 30


def ppo(credit="tree", **keys):
    return build({"name": "ppo", "credit": credit, "advantage": {"whiten": False, **keys}})


def prepared(groups, algorithm, seed=0):
    """The batch of ``groups``, random values for its terms, and what the advantage makes of them."""
    batch, account = build_batch(groups, algorithm)
    value = np.random.default_rng(seed).normal(size=len(batch.version))
    terms = TokenTerms(
        batch.advantage, batch.logprob, batch.targets.path, batch.targets.depth, batch.call, {"value": value}
    )
    return batch, account, value, algorithm.advantage.of_tokens(terms)


def by_definition(groups, algorithm, gamma, lambda_, values):
    """``Σ (γλ)^l δ`` for every token, read from the episodes without a batch."""
    values, made = iter(values), []
    for group in groups:
        for episode in group.episodes:
            if episode.outcome != "rewarded":
                continue
            returns = algorithm.credit(episode)
            spans = episode.tree.spans
            trained = {index for index, span in enumerate(spans) if span.sampled and span.sampled.call in returns}
            for path in cover(episode.tree, trained):
                held = {index: [next(values) for _ in spans[index].ids] for index, _ in path.spans}
                calls = [index for index, _ in sorted(path.spans, key=lambda each: each[1])]
                rewards, value = [], []
                for place, index in enumerate(calls):
                    earned = returns[spans[index].sampled.call]
                    if place + 1 < len(calls):
                        after = spans[calls[place + 1]]
                        earned -= gamma ** len(after.ids) * returns[after.sampled.call]
                    rewards += [0.0] * (len(spans[index].ids) - 1) + [earned]
                    value += held[index]
                ahead = [*value[1:], 0.0]
                delta = [r + gamma * b - v for r, b, v in zip(rewards, ahead, value, strict=True)]
                advantage = iter(
                    [
                        sum((gamma * lambda_) ** (late - at) * delta[late] for late in range(at, len(delta)))
                        for at in range(len(delta))
                    ]
                )
                by_span = {index: [next(advantage) for _ in spans[index].ids] for index in calls}
                made += [each for index, _ in path.spans for each in by_span[index]]
    return np.array(made)


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (0.97, 1.0)])
@pytest.mark.parametrize("credit", ["tree", "episode", {"discount": 0.8}], ids=["tree", "episode", "discounted"])
def test_advantages_are_those_of_the_definition(gamma, lambda_, credit):
    groups = wandering_groups(random.Random(5), VOCABULARY, groups=4, size=4, calls=6)
    algorithm = ppo(credit, gamma=gamma, **{"lambda": lambda_})
    batch, _, value, made = prepared(groups, algorithm)
    expected = by_definition(groups, algorithm, gamma, lambda_, value)
    np.testing.assert_allclose(made["advantage"], expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(made["return"], expected + value, rtol=1e-10, atol=1e-12)
    if gamma == lambda_ == 1.0:
        np.testing.assert_allclose(made["return"], batch.advantage)


def test_without_a_discount_and_with_lambda_1_every_token_gets_what_its_call_earned_less_the_value():
    groups = wandering_groups(random.Random(6), VOCABULARY, groups=3)
    batch, _, value, made = prepared(groups, ppo("episode", **{"lambda": 1.0}))
    np.testing.assert_allclose(made["advantage"], batch.advantage - value, atol=1e-12)


def test_whitened_advantages_have_mean_0_and_deviation_1_and_the_head_learns_the_plain_ones():
    groups = wandering_groups(random.Random(7), VOCABULARY, groups=3)
    _, _, value, plain = prepared(groups, ppo())
    _, _, _, white = prepared(groups, ppo(whiten=True))
    assert white["advantage"].mean() == pytest.approx(0, abs=1e-12)
    assert white["advantage"].std() == pytest.approx(1)
    np.testing.assert_allclose(white["return"], plain["advantage"] + value)
    scaled = (plain["advantage"] - plain["advantage"].mean()) / plain["advantage"].std()
    np.testing.assert_allclose(white["advantage"], scaled)
    alike = TokenTerms(*[np.zeros(3)] * 2, *[np.zeros(3, dtype=np.int64)] * 3, {"value": np.full(3, 0.1)})
    assert (
        not ppo(whiten=True, **{"lambda": 0.0})
        .advantage.of_tokens(replace(alike, advantage=np.full(3, 0.1)))["advantage"]
        .any()
    )


def alike(*rewards):
    source = random.Random(1)
    made = [chain(Recorder(source, VOCABULARY), [1, 2], turns=2) for _ in rewards]
    return Group(
        0, tuple(each.episode(reward, sample) for sample, (each, reward) in enumerate(zip(made, rewards, strict=True)))
    )


def test_every_episode_is_trained_and_a_group_without_a_difference_is_told_all_the_same():
    groups = [alike(0.0, 0.0, 0.0), alike(0.0, 1.0), alike(1.0), alike(None, 0.5, 0.5)]
    _, account, _, _ = prepared(groups, ppo())
    assert account.counts["groups/zero_variance"] == 2
    assert account.fates == (("trained",) * 3, ("trained",) * 2, ("trained",), ("rejected", "trained", "trained"))
    assert not compare(groups[0], ppo()).tells_apart
    assert compare(groups[2], ppo()).tells_apart


@pytest.mark.parametrize("keys", [{"lambda": 1.1}, {"gamma": -0.1}, {"lamda": 0.5}])
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ConfigError, match=r"algorithm\.advantage"):
        ppo(**keys)
