"""The gradients of penalties: of the entropy against autograd, and through the forest against separate rows."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import build, grpo
from tests.algorithms.episodes import Recorder, wandering_groups
from tests.learner.models import VOCABULARY, in_small_blocks, qwen3, takes_forest
from tests.learner.reference import forest_gradient, reference_gradient, relative_difference
from tests.learner.test_score import random_paths, random_targets

from agentrl.algorithms.batch import build_batch
from agentrl.learner import policy
from agentrl.learner.gradient import accumulate_gradient
from agentrl.learner.packing import pack
from agentrl.learner.policy import Policy
from agentrl.rollout.contract import Group

EXACT = 1e-6


@pytest.fixture(scope="module")
def model():
    return takes_forest(qwen3(window=5))


@pytest.fixture(scope="module")
def reference():
    return takes_forest(qwen3(window=5, seed=1))


def penalised(*penalties):
    return grpo(penalties=list(penalties))


@pytest.mark.parametrize(
    "penalty",
    [{"name": "kl", "estimator": estimator, "coefficient": 0.7} for estimator in ("k1", "k2", "k3")]
    + [{"name": "entropy", "coefficient": 0.3}],
    ids=["k1", "k2", "k3", "entropy"],
)
@pytest.mark.parametrize("tokens_per_batch", [64, 8192])
def test_the_gradient_through_the_forest_is_that_of_separate_rows(model, reference, penalty, tokens_per_batch):
    groups = wandering_groups(random.Random(11), VOCABULARY, calls=4)
    algorithm = penalised(penalty)
    loss, gradient = forest_gradient(model, groups, algorithm, tokens_per_batch, reference)
    expected_loss, expected = reference_gradient(model, groups, algorithm, reference)
    takes_forest(model), takes_forest(reference)
    assert loss == pytest.approx(expected_loss, rel=EXACT)
    assert relative_difference(gradient, expected) < EXACT
    _, plain = forest_gradient(model, groups, grpo(), tokens_per_batch)
    assert relative_difference(gradient, plain) > 0.01


@pytest.mark.parametrize("tokens_per_batch", [64, 8192])
def test_the_gradient_of_a_distillation_is_that_of_separate_rows(model, reference, tokens_per_batch):
    groups = wandering_groups(random.Random(12), VOCABULARY, calls=4, newest=3)
    distill = build({"name": "distill", "advantage": {"model": "x"}})
    loss, gradient = forest_gradient(model, groups, distill, tokens_per_batch, reference, version=3)
    expected_loss, expected = reference_gradient(model, groups, distill, reference, version=3)
    takes_forest(model), takes_forest(reference)
    assert loss == pytest.approx(expected_loss, rel=EXACT)
    assert relative_difference(gradient, expected) < EXACT


def test_penalties_train_what_no_advantage_does(model, reference):
    source = random.Random(1)
    made = [Recorder(source, VOCABULARY) for _ in range(3)]
    for recorder in made:
        recorder.call([1, 2, 3], 4)
    groups = [Group(0, tuple(recorder.episode(1.0, sample) for sample, recorder in enumerate(made)))]
    _, gradient = forest_gradient(model, groups, penalised("kl"), reference=reference)
    assert all(value.abs().sum() > 0 for value in gradient.values())
    algorithm = penalised("entropy", {"name": "kl", "coefficient": 0})
    batch, _ = build_batch(groups, algorithm)
    extra = {"reference": Policy(model).score_paths(batch.targets, batch.paths, 64).logprob}
    passes = pack(batch.paths, batch.targets, 64, forest=True)
    metrics = accumulate_gradient(Policy(model), replace(batch, extra=extra), passes, algorithm.loss).metrics
    assert metrics["penalty/entropy"] == metrics["policy/entropy"] > 0
    assert metrics["penalty/kl"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_entropy_is_that_of_autograd(model, monkeypatch, in_blocks, masked):
    if in_blocks:
        in_small_blocks(monkeypatch)
    source = random.Random(4)
    paths = random_paths(source)
    targets = random_targets(source, paths, masked=masked)
    (work,) = pack(paths, targets, 8192, forest=True)
    factor = torch.rand(len(targets.token), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for of_entropy, of_logprob in ((1.0, 0.0), (1.0, 0.5)):
        for scored in (Policy(model).score(work, targets), plainly(model, work, targets)):
            model.zero_grad()
            logprob, entropy = scored[:2]
            total = (entropy * factor).sum() * of_entropy
            if of_logprob:
                total = total + (logprob * factor.flip(0)).sum() * of_logprob
            total.backward()
            gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
    assert relative_difference(gradients[0], gradients[1]) < EXACT
    assert relative_difference(gradients[2], gradients[3]) < EXACT


def plainly(model, work, targets):
    """Log-probabilities and entropies by dense softmax, whose gradients autograd makes."""
    from agentrl.learner.attention import ForestAttention

    forest = ForestAttention(work.depth_RT[0], work.subtree_end_T)
    position_ids = torch.from_numpy(work.depth_RT)
    output = model(torch.from_numpy(work.ids_RT), position_ids=position_ids, forest=forest, use_cache=False)
    temperature = torch.from_numpy(targets.temperature[work.targets_N])
    logits = output.logits[0, torch.from_numpy(work.position_N)] / temperature[:, None]
    if targets.masks is not None:
        bits = np.unpackbits(targets.masks, axis=1, bitorder="little")[:, :VOCABULARY]
        allowed = np.concatenate([bits, np.ones((1, VOCABULARY), dtype=np.uint8)])[targets.mask[work.targets_N]]
        logits = logits.masked_fill(torch.from_numpy(allowed == 0), -1e300)
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(1, torch.from_numpy(targets.token[work.targets_N])[:, None])[:, 0]
    return chosen, -(logprobs.exp() * logprobs).sum(-1)


def test_a_token_without_any_chance_has_no_part_in_the_gradient_of_the_entropy():
    logits = torch.tensor([[0.0, 1.0, -2000.0]], dtype=torch.float32, requires_grad=True)
    at = torch.tensor([0])
    _, entropy = policy._LogSoftmax.apply(logits, at, at)
    entropy.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 2] == 0
    assert logits.grad[0, 0] == pytest.approx(-float(logits.grad[0, 1]))
    assert logits.grad[0, 0] > 0
