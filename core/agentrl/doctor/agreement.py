"""Whether an engine's logprobs are those of the learner's model: they are computed again, in plain float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agentrl.algorithms.terms import Terms
from agentrl.doctor.sampling import Sample
from agentrl.learner import forest, rows
from agentrl.learner.learner import Learner
from agentrl.learner.policy import Policy

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Differences of logprobs between engine and learner, in nats."""

    worst_mean: float
    """Mean over the tokens of one temperature, at the one where it is largest."""
    temperature: float
    """That temperature."""
    highest: float
    """Of a single token."""
    tokens: int


@torch.no_grad()
def agreement(learner: Learner, samples: Sequence[Sample]) -> Agreement:
    """Score ``samples``, of which each has as many logprobs as ids, as the learner would."""
    paths = [np.array([*sample.prompt_ids, *sample.ids], dtype=np.int64) for sample in samples]
    terms = _terms(samples)
    lay_out = forest.lay_out if learner.rows_because is None else rows.stack
    policy, scored = Policy(learner.model), np.empty(len(terms))
    for work in lay_out(paths, terms.path, terms.depth, sum(map(len, paths))):
        scored[work.terms] = policy.score(work, terms).logprob.double().cpu().numpy()
    differences = np.abs(scored - terms.logprob)
    means = {t: float(differences[terms.temperature == t].mean()) for t in set(terms.temperature.tolist())}
    worst = max(means, key=means.__getitem__)
    return Agreement(means[worst], worst, float(differences.max()), len(terms))


def _terms(samples: Sequence[Sample]) -> Terms:
    """Every token of ``samples``, each sample a path of its own; nothing of it is going to be trained."""
    lengths = [len(sample.ids) for sample in samples]
    path = np.repeat(np.arange(len(samples)), lengths)
    depth = [len(sample.prompt_ids) - 1 + np.arange(len(sample.ids)) for sample in samples]
    none = np.zeros(len(path), dtype=np.int64)
    return Terms(
        path=path,
        depth=np.concatenate(depth),
        token=np.concatenate([np.array(sample.ids, dtype=np.int64) for sample in samples]),
        logprob=np.concatenate([np.array(sample.logprobs, dtype=np.float64) for sample in samples]),
        temperature=np.repeat([sample.temperature for sample in samples], lengths),
        version=none,
        advantage=np.zeros(len(path)),
        weight=np.ones(len(path)),
        episode=path,
        call=path,
    )
