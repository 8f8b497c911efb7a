"""A step of several updates: each on a share of the episodes, corrected against the policy before the step."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder, groups_of_one_turn, wandering_groups
from tests.learner.models import VOCABULARY, qwen3

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner.contract import CorrectionTerms
from agentrl.learner.learner import Learner
from agentrl.learner.updates import cut_updates
from agentrl.rollout.contract import Group


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    qwen3().float().save_pretrained(folder)
    return folder


def learner_of(folder, algorithm=None, **settings):
    return Learner(folder, TrainingSection(learning_rate=1e-3, **settings), (algorithm or grpo()).loss, seed=0)


@pytest.mark.parametrize("normalisation", ["sequence", "token", {"name": "constant", "length": 9}])
@pytest.mark.parametrize("updates", [2, 3, 50])
def test_each_update_is_a_mean_of_its_own_episodes(normalisation, updates):
    groups = wandering_groups(random.Random(2), VOCABULARY, groups=3, size=4)
    algorithm = grpo(normalisation=normalisation)
    whole, _ = build_batch(groups, algorithm)
    batch, _ = build_batch(groups, algorithm, updates=updates)
    assert whole.update is None
    parts = [part for _, part in cut_updates(batch)]
    assert np.array_equal(
        np.sort(np.concatenate([terms for terms, _ in cut_updates(batch)])), np.arange(len(batch.call))
    )
    episodes = [set(part.labels) for part in parts]
    assert len(set().union(*episodes)) == sum(map(len, episodes)) == len(set(batch.labels))
    assert max(map(len, episodes)) - min(map(len, episodes)) <= 1
    assert len(parts) == min(updates, len(set(batch.labels)))
    for part in parts:
        labels = [part.labels[path] for path in part.targets.path]
        tokens = {label: labels.count(label) for label in labels}
        expected = {
            "sequence": [1 / (len(tokens) * tokens[label]) for label in labels],
            "token": [1 / len(labels)] * len(labels),
        }.get(normalisation if isinstance(normalisation, str) else "", [1 / (len(tokens) * 9)] * len(labels))
        np.testing.assert_allclose(part.weight, expected)
        assert part.targets.path.max() == len(part.paths) - 1


def test_an_update_follows_the_other_with_the_policy_before_the_step_as_the_proximal_one(folder):
    groups = groups_of_one_turn(random.Random(3), VOCABULARY, groups=4, size=4, prompt=5, longest=6)
    algorithm = grpo(correction="truncated")
    batch, _ = build_batch(groups, algorithm, updates=2)
    seen: list[CorrectionTerms] = []

    def spying(terms):
        seen.append(terms)
        return algorithm.correction(terms)

    learner = Learner(folder, TrainingSection(learning_rate=1e-3), replace(algorithm.loss, correction=spying), seed=0)
    before = learner.score(batch.targets, batch.paths).logprob
    metrics = learner.step(batch).metrics
    assert learner.version == 1
    assert metrics["learner/updates"] == 2
    assert metrics["policy/updated"] == 1
    assert metrics["tokens/trained"] == len(batch.version)
    told = np.concatenate([terms.learner.numpy() for terms in seen])
    np.testing.assert_allclose(np.sort(told), np.sort(before), atol=1e-5)
    assert len(seen) == 2

    # the same by two steps of one update, the second of which is told what the policy was before the first
    parts = cut_updates(batch)
    plain = learner_of(folder, algorithm)
    plain._update(parts[0][1], None, lambda: None)
    plain._update(parts[1][1], before[parts[1][0]], lambda: None)
    for one, other in zip(learner.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    single = learner_of(folder, algorithm)
    single.step(build_batch(groups, algorithm)[0])
    assert any(
        not torch.allclose(one, other, atol=1e-4)
        for one, other in zip(learner.model.parameters(), single.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("tokens", [8192, 40])
def test_a_step_tells_what_it_found_of_every_term_in_the_order_of_its_batch(folder, updates, tokens):
    """By the weights before it, however many updates and passes it takes."""
    groups = wandering_groups(random.Random(6), VOCABULARY, groups=3, size=4)
    algorithm = grpo(correction={"name": "truncated", "cap": 1.05})
    batch, _ = build_batch(groups, algorithm, updates=updates)
    batch = replace(batch, advantage=np.where(batch.call % 2, batch.advantage, 0.0))  # some passes have no gradient
    learner = learner_of(folder, algorithm, tokens_per_batch=tokens)
    before = learner.score(batch.targets, batch.paths)
    metrics, terms = learner.step(batch)
    assert (metrics["learner/updates"], metrics["learner/passes"] > 1) == (updates, True)
    np.testing.assert_allclose(terms.logprob, before.logprob, atol=1e-5)
    np.testing.assert_allclose(terms.entropy, before.entropy, atol=1e-5)
    weight = np.minimum(np.exp(before.logprob - batch.logprob), 1.05)
    np.testing.assert_allclose(terms.importance, weight, atol=1e-5)
    assert 0 < np.mean(weight < 1.05) < 1
    assert metrics["policy/weight_mean"] == pytest.approx(terms.importance.mean(), abs=1e-6)
    assert metrics["policy/ratio_mean"] == pytest.approx(np.exp(terms.logprob - batch.logprob).mean(), abs=1e-6)


def test_the_same_step_makes_the_same_weights_to_the_bit(folder):
    batch, _ = build_batch(wandering_groups(random.Random(4), VOCABULARY), grpo(), updates=3)
    learners = [learner_of(folder) for _ in range(2)]
    for learner in learners:
        learner.step(batch)
    for one, other in zip(*(learner.model.parameters() for learner in learners), strict=True):
        assert torch.equal(one, other)


def test_the_learning_rate_is_that_of_the_step_in_all_its_updates(folder):
    batch, _ = build_batch(wandering_groups(random.Random(4), VOCABULARY), grpo(), updates=3)
    learner = learner_of(folder, schedule="linear", steps=4)
    rates = [learner.step(batch).metrics["policy/learning_rate"] for _ in range(2)]
    assert rates == [pytest.approx(1e-3), pytest.approx(0.75e-3)]


def test_fewer_episodes_make_fewer_updates_and_none_are_a_step_too(folder):
    recorder = Recorder(random.Random(0), VOCABULARY)
    recorder.call([1, 2], 3)
    alone, _ = build_batch([Group(0, (recorder.episode(1.0),))], grpo(), updates=4)
    nothing, _ = build_batch([], grpo(), updates=4)
    learner = learner_of(folder)
    assert learner.step(alone).metrics["learner/updates"] == 1
    learner.step(nothing)
    assert learner.version == 2


def test_a_path_in_two_updates_is_refused():
    batch, _ = build_batch(wandering_groups(random.Random(4), VOCABULARY), grpo())
    with pytest.raises(ValueError, match="the terms of a path"):
        cut_updates(replace(batch, update=np.arange(len(batch.version)) % 2))
