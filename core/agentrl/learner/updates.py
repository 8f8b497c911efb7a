"""The updates of a step: a batch cut into the shares that each make one update of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.learner.contract import Scores, StepResult, Targets, TermScores, TrainBatch

if TYPE_CHECKING:
    from agentrl.learner.contract import Ints

__all__ = ["cut_updates", "joined"]

_GREATEST = ("policy/ratio_max", "policy/updated")
_SUMS = (
    "tokens/forest",
    "learner/passes",
    "seconds/learner/pack",
    "seconds/learner/gradient",
    "seconds/learner/update",
)


def cut_updates(batch: TrainBatch) -> list[tuple[Ints, TrainBatch]]:
    """Return the terms of each update, as indices into ``batch``, and a batch of them alone; at least one.

    Raises ``ValueError`` where the terms of a path are in several updates.
    """
    everything = np.arange(len(batch.version))
    if batch.update is None or not len(everything):
        return [(everything, batch)]
    of_path = np.full(len(batch.paths), -1, dtype=np.int64)
    of_path[batch.targets.path] = batch.update
    if not np.array_equal(of_path[batch.targets.path], batch.update):
        raise ValueError("the terms of a path of the batch are in several updates")
    numbers = np.unique(batch.update)
    terms = [np.flatnonzero(batch.update == number) for number in numbers]
    return [(at, _share(batch, at, np.flatnonzero(of_path == n))) for n, at in zip(numbers, terms, strict=True)]


def _share(batch: TrainBatch, terms: Ints, paths: Ints) -> TrainBatch:
    """The batch of ``terms`` alone, which lie on ``paths``."""
    targets = batch.targets
    chosen = Targets(
        path=np.searchsorted(paths, targets.path[terms]),
        depth=targets.depth[terms],
        token=targets.token[terms],
        temperature=targets.temperature[terms],
        masks=targets.masks,
        mask=None if targets.mask is None else targets.mask[terms],
    )
    columns = {name: getattr(batch, name)[terms] for name in ("logprob", "version", "advantage", "weight", "call")}
    return replace(
        batch,
        paths=tuple(batch.paths[path] for path in paths),
        targets=chosen,
        extra={name: column[terms] for name, column in batch.extra.items()},
        update=None,
        labels=tuple(batch.labels[path] for path in paths) if batch.labels else (),
        **columns,
    )


def joined(made: Sequence[tuple[StepResult, Ints]], before: Scores) -> StepResult:
    """Return the result of a step from those of its updates, each with its terms.

    Metrics are means over terms, but for those that are sums or the greatest of all. ``before`` has the scores of all
    terms before the step.
    """
    importance = np.empty(len(before.logprob))
    for result, terms in made:
        importance[terms] = result.terms.importance
    scores = TermScores(before.logprob, before.entropy, importance)
    return StepResult(_joined_metrics([(result.metrics, len(terms)) for result, terms in made]), scores)


def _joined_metrics(made: Sequence[tuple[dict[str, float], int]]) -> dict[str, float]:
    """The metrics of a step from those of its updates, each with its number of terms."""
    total = sum(count for _, count in made)
    joined: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics, _ in made for name in metrics):
        values = [(metrics[name], count) for metrics, count in made if name in metrics]
        if name in _GREATEST:
            joined[name] = max(value for value, _ in values)
        elif name in _SUMS:
            joined[name] = sum(value for value, _ in values)
        else:
            joined[name] = sum(value * count for value, count in values) / total
    return joined
