"""The columns of a batch that models fill in after it was built and before it is trained on.

A penalty or an advantage may need to know what a model makes of every token: a reference, a teacher, or the learner's
own value head. ``Columns`` has them, makes token advantages of what they say, and is the one way from groups to a batch
that can be trained on, wherever the groups come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentrl.algorithms.batch import Account, build_batch
from agentrl.algorithms.contract import Algorithm, TokenAdvantage, TokenTerms
from agentrl.config.models import Config
from agentrl.errors import ConfigError, near_matches
from agentrl.learner.contract import TrainBatch
from agentrl.learner.frozen import FrozenModel
from agentrl.learner.learner import Learner
from agentrl.rollout.contract import Group

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats

__all__ = ["Columns", "Prepared", "Sources"]

Scorer = Callable[[TrainBatch], "Floats"]
"""From a batch to a number for each of its terms."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the models are that an algorithm needs beside the learner's."""

    reference: Path | None = None
    """The folder of the model that a run began with; ``None`` where the algorithm has no reference."""

    @classmethod
    def of(cls, algorithm: Algorithm, original: Callable[[], Path]) -> Sources:
        """Find them, and load nothing.

        ``original`` returns the folder of the model that the run began with. Raises ``ConfigError`` for a column that
        no model gives.
        """
        for column in algorithm.columns:
            if column not in _COLUMNS:
                raise ConfigError(
                    f"algorithm {algorithm.name!r} needs the column {column!r} of its batches, which nothing gives",
                    fix=near_matches(column, _COLUMNS),
                )
        return cls(reference=original() if "reference" in algorithm.columns else None)


_COLUMNS = ("reference", "value")


class Prepared(NamedTuple):
    """A batch with all its columns, and what it was made of."""

    batch: TrainBatch
    account: Account
    groups: tuple[Group, ...]
    """Those given; an episode that a model could not score has failed in them."""
    metrics: Mapping[str, float]


class Columns:
    """Makes batches of groups for one algorithm, with the columns that models give."""

    def __init__(self, algorithm: Algorithm, scorers: Mapping[str, Scorer] | None = None) -> None:
        """``scorers`` has what fills each of ``algorithm.columns``."""
        self.algorithm = algorithm
        """What the batches are made by."""
        self._scorers = dict(scorers or {})

    @classmethod
    def load(cls, algorithm: Algorithm, learner: Learner, sources: Sources, config: Config) -> Columns:
        """Load the models of ``sources``. Raises ``ConfigError`` for a folder that holds none."""
        scorers: dict[str, Scorer] = {}
        if sources.reference is not None:
            reference = FrozenModel(sources.reference, config.training)
            scorers["reference"] = lambda batch: reference.score(batch.targets, batch.paths).logprob
        if "value" in algorithm.columns:
            scorers["value"] = lambda batch: _values(learner, batch)
        return cls(algorithm, scorers)

    def prepare(self, groups: Sequence[Group], **bounds: Any) -> Prepared:
        """Return the batch of ``groups`` with all its columns; ``bounds`` are as of ``build_batch``."""
        batch, account = build_batch(groups, self.algorithm, **bounds)
        if not self._scorers:
            return Prepared(batch, account, tuple(groups), {})
        started = time.perf_counter()
        columns = {name: scorer(batch) for name, scorer in self._scorers.items()}
        batch = self._with_advantages(replace(batch, extra={**batch.extra, **columns}))
        return Prepared(batch, account, tuple(groups), {"seconds/learner/score": time.perf_counter() - started})

    def _with_advantages(self, batch: TrainBatch) -> TrainBatch:
        """``batch`` with the advantages of its tokens, where they have any of their own."""
        advantage = self.algorithm.advantage
        if not isinstance(advantage, TokenAdvantage):
            return batch
        targets = batch.targets
        terms = TokenTerms(batch.advantage, batch.logprob, targets.path, targets.depth, batch.call, batch.extra)
        made = dict(advantage.of_tokens(terms))
        return replace(batch, advantage=made.pop("advantage"), extra={**batch.extra, **made})


def _values(learner: Learner, batch: TrainBatch) -> Floats:
    """What the learner's value head expects before each token."""
    value = learner.score(batch.targets, batch.paths).value
    assert value is not None, "an algorithm that asks for values has a critic"
    return value
