"""What the ranks of ``test_ranks`` do: functions that are called in each of their processes."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import groups_of_one_turn, wandering_groups
from tests.learner.models import VOCABULARY

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner import learner as module
from agentrl.learner.folder import load_model
from agentrl.learner.gradient import is_learned
from agentrl.learner.learner import Learner
from agentrl.learner.packing import Idle
from agentrl.learner.ranks import Ranks
from agentrl.learner.sharing import Costs
from agentrl.learner.updates import cut_updates


def batches(algorithm, count=10):
    """Fixed ones: shared prompts, and conversations that branch."""
    made = []
    for seed in range(count):
        source = random.Random(seed)
        if seed % 2:
            groups = wandering_groups(source, VOCABULARY, calls=3)
        else:
            groups = groups_of_one_turn(source, VOCABULARY, groups=3, size=4, prompt=9, longest=6)
        batch = build_batch(groups, algorithm)[0]
        if algorithm.loss.critic is not None:
            values = np.random.default_rng(seed)
            extra = {name: values.normal(size=len(batch.version)) for name in ("value", "return")}
            batch = replace(batch, advantage=values.normal(size=len(batch.version)), extra=extra)
        made.append(batch)
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
                name: shards.ranks.whole(shards.sharded(each.grad, weights[name])).clone()
                for name, each in masters.items()
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


def resume(ranks, source, saved, algorithm, dtype, training, first, stop, into=None):
    """Go on from the checkpoint ``saved``, where there is one, with batches ``[first, stop)``; saved into ``into``."""
    made = learner_of(ranks, source if saved is None else saved, build(algorithm), dtype, **training)
    if saved is not None:
        made.load_state(saved)
    losses = [made.step(batch).metrics["policy/loss"] for batch in batches(build(algorithm), stop)[first:]]
    if into is not None:
        made.save(into)
        made.save_state(into)
    return losses, weights_of(made), made.version


def save(ranks, folder, algorithm, into, training, steps=1):
    """The folder of a learner that took steps, its state, and one of lent weights; with what was lent."""
    made = learner_of(ranks, folder, build(algorithm), **training)
    for batch in batches(build(algorithm), steps):
        made.step(batch)
    made.save(into / "saved")
    made.save_state(into / "saved")
    with made.lend("a test") as weights:
        weights.save(into / "lent")
        names = weights.names()
        dtypes = dict.fromkeys(names, "bfloat16")
        told = weights.digests(dtypes), weights.logprobs([1, 2, 3, 4, 5]), names
        if weights.adapter is not None:
            weights.adapter.save(into / "adapter")
            adapted = {name: "float32" for name, _ in weights.adapter.tensors()}
            told += (weights.adapter.digests(adapted), weights.adapter.merged_logprobs([1, 2, 3], dtypes))
    return told


def go_back(ranks, folder, saved, algorithm, training):
    """A learner that learned otherwise, back at the checkpoint ``saved``, and one that was resumed there."""
    made = learner_of(ranks, folder, build(algorithm), **training)
    for batch in reversed(batches(build(algorithm), 3)):
        made.step(batch)
    made.go_back(saved, 7)
    resumed = learner_of(ranks, saved, build(algorithm), **training)
    resumed.load_state(saved)
    last = batches(build(algorithm), 4)[-1]
    losses = [each.step(last).metrics["policy/loss"] for each in (made, resumed)]
    return losses, weights_of(made), weights_of(resumed), made.version


def load(ranks, folder, algorithm, training):
    """Only the error of a state that is not whole."""
    learner_of(ranks, folder, build(algorithm), **training).load_state(folder)


def spoilt(ranks, folder, algorithm):
    """Metrics of steps on a batch whose gradient is zero, and on one that has a term that is no number."""
    made = learner_of(ranks, folder, build(algorithm))
    before = weights_of(made)
    batch = batches(build(algorithm), 1)[0]
    made.step(replace(batch, advantage=batch.advantage * 0.0))
    logprob = batch.logprob.copy()
    logprob[0] = float("nan")
    bad = made.step(replace(batch, logprob=logprob)).metrics
    same = all(torch.equal(tensor, before[name]) for name, tensor in weights_of(made).items())
    good = made.step(batch).metrics
    return same, bad["policy/updated"], bad["policy/loss"], good["policy/updated"]


def small(ranks, folder, algorithm, dtype):
    """One path, which leaves all ranks but one without a pass, and the scores of another."""
    made = learner_of(ranks, folder, build(algorithm), dtype)
    recording = Recording(made)
    whole = batches(build(algorithm), 1)[0]
    lot = replace(whole, update=whole.targets.path)
    only = cut_updates(lot)[0][1]
    result = made.step(only)
    scores = made.score(only.targets, only.paths)
    return recording.gradients[0], result, scores


def forever(ranks, folder, algorithm, started):
    """Steps without end."""
    made = learner_of(ranks, folder, build(algorithm))
    batch = batches(build(algorithm), 1)[0]
    while True:
        made.step(batch)
        (started / str(ranks.rank)).touch()


def hang(ranks):
    """The last rank does not take part in what the others wait for."""
    if ranks.rank == ranks.size - 1:
        time.sleep(8)
        return None
    with ranks.guarding("take a step"):
        return ranks.add_up(torch.ones(1))


def learn_in_turn(ranks, folder, algorithm):
    """Whether one rank at a time had the whole model."""
    times = []

    def watched(path):
        times.append(time.monotonic())
        model = load_model(path)
        time.sleep(0.2)
        times.append(time.monotonic())
        return model

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "load_model", watched)
        patched.setattr(module, "SMALL", 1)
        Learner(folder, TrainingSection(learning_rate=1e-2), build(algorithm).loss, seed=0, ranks=ranks)
    return times


def sharing(ranks, folder, algorithm, tokens):
    """The passes of every rank: how many tokens each has, and 0 for one that is idle."""
    made = learner_of(ranks, folder, build(algorithm), tokens_per_batch=tokens)
    shared = []
    for batch in batches(build(algorithm)):
        first = np.flatnonzero(is_learned(batch, build(algorithm).loss))
        whole, own = made._policy.lay_out(batch.paths, batch.targets, tokens, first=first)
        costs = Costs.of(made.model)
        shared.append(([0.0 if isinstance(work, Idle) else costs(work) for work in own], [costs(w) for w in whole]))
    return shared


def tell(ranks):
    """What ranks say to each other, texts of different lengths; and why something else is not said."""
    told = ranks.gather({"rank": ranks.rank, "text": "ü" * ranks.rank * 1000, "number": 0.1, "pair": (1, None)})
    try:
        ranks.gather(Path("here"))
    except TypeError as error:
        return told, str(error)
    return told, ""


def listening(ranks):
    """The addresses at which this process listens."""
    del ranks
    return [each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN]
