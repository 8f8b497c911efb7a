"""What the ranks of ``test_ranks`` do: functions that are called in each of their processes."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import groups_of_one_turn, wandering_groups
from tests.learner.models import VOCABULARY

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner import learner as module
from agentrl.learner.folder import load_model
from agentrl.learner.learner import Learner
from agentrl.learner.ranks import Ranks


def batches(algorithm, count=10):
    """Fixed ones: shared prompts, and conversations that branch."""
    made = []
    for seed in range(count):
        source = random.Random(seed)
        if seed % 2:
            groups = wandering_groups(source, VOCABULARY, calls=3)
        else:
            groups = groups_of_one_turn(source, VOCABULARY, groups=3, size=4, prompt=9, longest=6)
        made.append(build_batch(groups, algorithm)[0])
    return made


def learner_of(ranks, folder, algorithm, dtype="float32", **training):
    """A learner that computes in ``dtype``, float64 among them."""
    with pytest.MonkeyPatch.context() as patched:
        if dtype == "float64":
            patched.setattr(module, "load_model", lambda path: in_float64(load_model(path)))
            patched.setattr(module, "precision_on", lambda *_: torch.float64)
        settings = TrainingSection(**{"learning_rate": 1e-2, **training})
        return Learner(folder, settings, algorithm.loss, seed=0, ranks=ranks)


def in_float64(model):
    """``model`` with norms in float64 too: families compute them in float32, whose rounding shows at random."""
    for each in model.double().modules():
        if hasattr(each, "variance_epsilon"):
            each.forward = partial(normed, each)
    return model


def normed(norm, x):
    return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()


class Recording:
    """Keeps the gradients of an optimiser's steps, whole."""

    def __init__(self, learner):
        self.learner, self.gradients = learner, []
        self.step = learner._optimiser.step
        learner._optimiser.step = self

    def __call__(self, *arguments):
        shards, masters = self.learner._masters.shards, self.learner._masters.parameters
        if shards is None:
            self.gradients.append({name: each.grad.clone() for name, each in masters.items()})
        else:
            weights = shards.weights()
            whole = {
                name: shards.ranks.whole(shards.sharded(each.grad, weights[name])) for name, each in masters.items()
            }
            self.gradients.append(whole)
        return self.step(*arguments)


def weights_of(learner):
    with learner.lend("a test") as weights:
        return {name: tensor.clone() for name, tensor in weights.tensors()}


def train(ranks, folder, algorithm, dtype, training=None, count=10):
    """Steps over fixed batches: gradients, results, weights, and scores of the last batch after it."""
    made = learner_of(ranks, folder, build(algorithm), dtype, **(training or {}))
    recording = Recording(made)
    given = batches(build(algorithm), count)
    results = [made.step(batch) for batch in given]
    return {
        "gradients": recording.gradients,
        "metrics": [result.metrics for result in results],
        "terms": [result.terms for result in results],
        "weights": weights_of(made),
        "scores": made.score(given[-1].targets, given[-1].paths),
    }


def alone(*arguments):
    return train(Ranks.alone(), *arguments)
