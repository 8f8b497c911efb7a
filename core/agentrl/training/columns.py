"""The columns of a batch that models fill in after it was built and before it is trained on.

A penalty or an advantage may need to know what a model makes of every token: a reference, a teacher, or the learner's
own value head. ``Columns`` has them, makes token advantages of what they say, and is the one way from groups to a batch
that can be trained on, wherever the groups come from.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agentrl.algorithms.account import Account
from agentrl.algorithms.batch import build_batch
from agentrl.algorithms.contract import Algorithm, TokenAdvantage, TokenTerms
from agentrl.config.models import Config
from agentrl.costs.contract import UNMETERED, Meter
from agentrl.errors import RunError
from agentrl.learner.contract import Trainable, TrainBatch
from agentrl.learner.frozen import FrozenModel
from agentrl.rollout.contract import EpisodeKey, Failure, Group
from agentrl.training.sources import Sources

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats

__all__ = ["Columns", "Prepared", "Scored", "Scorer"]


class Scored(NamedTuple):
    """A column of a batch."""

    values: Floats
    """A number for each term."""
    failures: Mapping[int, Failure] = {}
    """By path: why there are no numbers for the terms on it."""


Scorer = Callable[[TrainBatch], Scored]
"""A model that says something of every term of a batch."""


class Prepared(NamedTuple):
    """A batch with all its columns, and what it was made of."""

    batch: TrainBatch
    account: Account
    groups: tuple[Group, ...]
    """Those given; an episode that a model could not score has failed in them."""
    metrics: Mapping[str, float]


@dataclass
class Columns:
    """Makes batches of groups for one algorithm, with the columns that models give."""

    algorithm: Algorithm
    """What the batches are made by."""
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """What fills each of ``algorithm.columns``."""
    warn: Callable[[str], None] = lambda text: None
    """Told of episodes that could not be scored."""
    given_up: Callable[[], None] = lambda: None
    """Called where nothing of a step could be scored, so that it is not made."""

    @classmethod
    def load(
        cls,
        algorithm: Algorithm,
        learner: Trainable,
        sources: Sources,
        config: Config,
        *,
        run: Path | None = None,
        warn: Callable[[str], None] = lambda text: None,
        meter: Meter = UNMETERED,
    ) -> Columns:
        """Load the models of ``sources``, and see whether those at endpoints answer.

        ``run`` is the folder of the run, in which is kept what an endpoint said, and ``meter`` is told of every request
        to one. Raises ``ConfigError`` for a folder
        that holds no model, and an endpoint that cannot be asked or has another vocabulary.
        """
        columns = cls(algorithm, warn=warn)
        scorers: dict[str, Scorer] = {}
        if sources.reference is not None:
            scorers["reference"] = _of_model(FrozenModel(sources.reference, config.training))
        elif "reference" in algorithm.columns:
            scorers["reference"] = lambda batch: Scored(_without_adapter(learner, batch))
        if "value" in algorithm.columns:
            scorers["value"] = lambda batch: Scored(_values(learner, batch))
        if isinstance(sources.teacher, Path):
            scorers["teacher"] = _of_model(FrozenModel(sources.teacher, config.training))
        elif sources.teacher is not None:
            # Loads the client of endpoints, which no other run needs.
            from agentrl.training.endpoint_column import EndpointColumn

            endpoint = EndpointColumn.open(sources.teacher, sources, learner, config, run, meter)
            scorers["teacher"] = endpoint
            columns.given_up = endpoint.forget_failures
        columns.scorers = scorers
        return columns

    def prepare(self, groups: Sequence[Group], **bounds: Any) -> Prepared:
        """Return the batch of ``groups`` with all its columns; ``bounds`` are as of ``build_batch``.

        An episode that a model could not score fails, and is left out as if it had failed in the rollout. Raises
        ``RunError`` where that happens to all.
        """
        batch, account = build_batch(groups, self.algorithm, **bounds)
        if not self.scorers:
            return Prepared(batch, account, tuple(groups), {})
        started = time.perf_counter()
        failed: dict[EpisodeKey, Failure] = {}
        while True:
            scored = {name: scorer(batch) for name, scorer in self.scorers.items()}
            new = {account.paths[path]: why for each in scored.values() for path, why in each.failures.items()}
            if not new:
                break
            failed |= new
            if len(new) == len(set(account.paths)):
                self.given_up()
                raise RunError(
                    f"no episode of the step could be scored: {_commonest(failed)}",
                    fix="mend that, and resume the run, which then asks again",
                )
            groups = [_with_failures(group, new) for group in groups]
            batch, account = build_batch(groups, self.algorithm, **bounds)
        if failed:
            several = f"{len(failed)} episodes" if len(failed) > 1 else "an episode"
            self.warn(f"{several} of the step could not be scored and failed: {_commonest(failed)}")
        batch = replace(batch, extra={**batch.extra, **{name: each.values for name, each in scored.items()}})
        metrics = {"seconds/learner/score": time.perf_counter() - started}
        if "teacher" in batch.extra and len(batch.logprob):
            metrics["teacher/kl"] = float(np.mean(batch.logprob - np.maximum(batch.extra["teacher"], -1e3)))
            metrics["teacher/failed"] = float(len(failed))
        return Prepared(self._with_advantages(batch), account, tuple(groups), metrics)

    def _with_advantages(self, batch: TrainBatch) -> TrainBatch:
        """``batch`` with the advantages of its tokens, where they have any of their own."""
        advantage = self.algorithm.advantage
        if not isinstance(advantage, TokenAdvantage):
            return batch
        targets = batch.targets
        terms = TokenTerms(batch.advantage, batch.logprob, targets.path, targets.depth, batch.call, batch.extra)
        made = dict(advantage.of_tokens(terms))
        return replace(batch, advantage=made.pop("advantage"), extra={**batch.extra, **made})


def _commonest(failed: Mapping[EpisodeKey, Failure]) -> str:
    """The commonest of the reasons, with an example."""
    kinds = Counter(failure.kind for failure in failed.values())
    kind, count = kinds.most_common(1)[0]
    example = next(failure.reason for failure in failed.values() if failure.kind == kind)
    return f"{count} times {example}" if len(failed) > 1 else example


def _with_failures(group: Group, failed: Mapping[EpisodeKey, Failure]) -> Group:
    episodes = tuple(
        replace(episode, outcome="failed", reward=None, call_rewards={}, failure=failed[episode.key])
        if episode.key in failed
        else episode
        for episode in group.episodes
    )
    return replace(group, episodes=episodes)


def _of_model(model: FrozenModel) -> Scorer:
    return lambda batch: Scored(model.score(batch.targets, batch.paths).logprob)


def _without_adapter(learner: Trainable, batch: TrainBatch) -> Floats:
    """The log-probabilities under the model beneath the learner's adapter."""
    with learner.without_adapter():
        return learner.score(batch.targets, batch.paths).logprob


def _values(learner: Trainable, batch: TrainBatch) -> Floats:
    """What the learner's value head expects before each token."""
    value = learner.score(batch.targets, batch.paths).value
    assert value is not None, "an algorithm that asks for values has a critic"
    return value
