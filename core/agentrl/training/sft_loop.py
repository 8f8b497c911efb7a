"""The loop of supervised fine-tuning: over and over take conversations, learn, and now and then measure the loss.

Which conversations a step takes follows from the seed and the number of the step alone, so a run that is resumed from a
checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agentrl.algorithms.contract import Membership, Normalisation
from agentrl.config.models import Config, SftSection
from agentrl.learner.contract import Trainable
from agentrl.runs.contract import MetricsLine
from agentrl.training.checkpointer import Checkpointer
from agentrl.training.checkpoints import Conversing
from agentrl.training.deadlines import finish_within
from agentrl.training.examples import Example, calls_of, targets_of, train_batch
from agentrl.training.recorder import RunRecorder
from agentrl.training.stopwatch import Stopwatch

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats

__all__ = ["HeldOutLoss", "Order", "SftLoop", "perplexity"]

_OF_SAMPLES = (
    "policy/ratio_mean",
    "policy/ratio_max",
    "policy/mismatch_kl",
    "policy/clip_fraction",
    "policy/weight_mean",
    "policy/masked",
)
"""Metrics that compare the learner with whoever sampled the tokens, which nobody did."""
_SCORED = 64
"""Conversations that are scored in one call."""
_LARGEST = 700.0
"""The largest loss whose exponential is finite."""


class Order:
    """The conversations of each step: shuffled by ``seed`` anew in every epoch, in which each comes once."""

    def __init__(self, sizes: Sequence[int], section: SftSection, seed: int) -> None:
        """``sizes`` has how many trained tokens each conversation has."""
        self._sizes = np.array(sizes, dtype=np.int64)
        self._section = section
        self._seed = seed
        self._epochs: list[list[list[int]]] = []
        """For each epoch so far, the conversations of its steps."""
        self._first: list[int] = [0]
        """The step, counted from 0, with which each epoch begins, and that after the last."""

    def at(self, step: int) -> list[int]:
        """The conversations of ``step``, counted from 0."""
        while step >= self._first[-1]:
            self._add()
        epoch = int(np.searchsorted(self._first, step, side="right")) - 1
        return self._epochs[epoch][step - self._first[epoch]]

    def steps(self, epochs: int) -> int:
        """How many steps so many epochs take."""
        while len(self._epochs) < epochs:
            self._add()
        return self._first[epochs]

    def epochs(self, steps: int) -> float:
        """How many epochs so many steps are."""
        if not steps:
            return 0.0
        self.at(steps - 1)
        epoch = int(np.searchsorted(self._first, steps - 1, side="right")) - 1
        return epoch + (steps - self._first[epoch]) / len(self._epochs[epoch])

    def _add(self) -> None:
        order = np.random.default_rng([self._seed, len(self._epochs)]).permutation(len(self._sizes)).tolist()
        self._epochs.append(list(self._cut(order)))
        self._first.append(self._first[-1] + len(self._epochs[-1]))

    def _cut(self, order: Sequence[int]) -> Iterable[list[int]]:
        """The steps of an epoch; a conversation that alone has too many tokens is a step of its own."""
        most, count = self._section.tokens_per_step, self._section.conversations_per_step
        chosen: list[int] = []
        tokens = 0
        for index in order:
            size = int(self._sizes[index])
            is_full = len(chosen) == count if most is None else tokens + size > most
            if chosen and is_full:
                yield chosen
                chosen, tokens = [], 0
            chosen.append(index)
            tokens += size
        yield chosen


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """The loss on held-out conversations."""

    step: int
    loss: float
    """Mean negative log-probability of a trained token, in nats."""
    conversations: int
    tokens: int

    @classmethod
    def of_line(cls, line: MetricsLine) -> HeldOutLoss:
        """The loss that was logged as ``line``."""
        numbers = {name: value or 0.0 for name, value in line.metrics.items()}
        count, tokens = numbers["evaluation/conversations"], numbers["evaluation/tokens"]
        return cls(line.step, numbers["evaluation/loss"], int(count), int(tokens))

    def metrics(self) -> dict[str, float]:
        """As logged: `evaluation/loss`, `evaluation/perplexity`, …"""
        return {
            "evaluation/loss": self.loss,
            "evaluation/perplexity": perplexity(self.loss),
            "evaluation/conversations": self.conversations,
            "evaluation/tokens": self.tokens,
        }


def perplexity(loss: float) -> float:
    """The exponential of a loss."""
    return math.exp(min(loss, _LARGEST))


@dataclass
class SftLoop:
    """One run of supervised fine-tuning. ``run`` may be called once."""

    config: Config
    learner: Trainable
    normalisation: Normalisation
    train: Sequence[Example]
    held_out: Sequence[Example]
    order: Order
    recorder: RunRecorder
    conversing: Conversing
    elapsed: Callable[[], float]
    over_long: int = 0
    """Conversations that are left out because they are longer than a pass."""
    lines: Sequence[MetricsLine] = ()
    """The metrics that a resumed run goes on from."""
    checkpointer: Checkpointer = field(init=False)
    _before: HeldOutLoss | None = None
    _latest: HeldOutLoss | None = None
    _learned: _Learned | None = None
    """The step that made the weights, until its metrics are written."""

    def __post_init__(self) -> None:
        self._stopwatch = Stopwatch()
        resumed = self.recorder.folder.checkpoint(self.learner.version) if self.learner.version else None
        self.checkpointer = Checkpointer(
            self.learner,
            self.config.training,
            self.recorder,
            self.conversing,
            self.elapsed,
            self._stopwatch,
            resumed,
        )
        self.checkpointer.cursor = sum(len(self.order.at(step)) for step in range(self.learner.version))
        losses = [HeldOutLoss.of_line(line) for line in self.lines if line.is_evaluation]
        self._before, self._latest = (losses[0], losses[-1]) if losses else (None, None)
        self._tokens = sum(int(line.metrics.get("tokens/trained") or 0) for line in self.lines)

    async def run(self) -> None:
        """Train for ``training.steps`` steps; whatever stops it, the checkpointer may save afterwards."""
        training, evaluation = self.config.training, self.config.evaluation
        if self.learner.version == 0 or self._due(evaluation.every):
            await self._evaluate()
        while self.learner.version < training.steps:
            await self._step()
            if self._due(evaluation.every):
                await self._evaluate()
            if self._due(training.checkpoint_every):
                await self.checkpointer.save()
        await self._evaluate()
        await self.checkpointer.save()

    def write_step(self) -> bool:
        """Write the metrics of a step that was interrupted; returns whether there are weights to save."""
        if self.learner.version == 0:
            return False
        if self._learned is not None:
            self._write(self._learned)
        return True

    @property
    def stopwatch(self) -> Stopwatch:
        """Has the seconds that no line of metrics tells yet."""
        return self._stopwatch

    def results(self) -> dict[str, Any]:
        """What the run's summary says of its learning."""
        current = self._latest if self._latest is not None and self._latest.step == self.learner.version else None
        return {
            "loss_before": None if self._before is None else self._before.loss,
            "loss_after": None if current is None else current.loss,
            "conversations": self.checkpointer.cursor,
            "tokens": self._tokens,
            "over_long": self.over_long,
        }

    async def _step(self) -> None:
        step = self.learner.version + 1
        self.recorder.reporter.activity_started("learning")
        with self._stopwatch.time("step"), self._stopwatch.time("learner"):
            what = f"the learner to take step {step}"
            learned = await finish_within(self.config.training.timeout, what, self._learn)
        self._write(learned)

    def _learn(self) -> _Learned:
        version = self.learner.version
        examples = [self.train[index] for index in self.order.at(version)]
        batch = train_batch(examples, self._weights(examples), version)
        with self.checkpointer.weights_change():
            metrics = self.learner.step(batch).metrics
            self.checkpointer.cursor += len(examples)  # Those that came again are counted again.
            # Here, because whoever waits for this may be interrupted meanwhile.
            self._learned = _Learned(version + 1, len(examples), metrics)
        return self._learned

    def _weights(self, examples: Sequence[Example]) -> Floats:
        counts = [len(example.token) for example in examples]
        return self.normalisation(Membership(np.repeat(np.arange(len(examples)), counts), calls_of(examples)))

    def _write(self, learned: _Learned) -> None:
        kept = {
            name: value
            for name, value in learned.metrics.items()
            if name not in _OF_SAMPLES and not name.startswith("staleness/")
        }
        metrics = {
            **kept,
            "policy/perplexity": perplexity(learned.metrics["policy/loss"]),
            "sft/conversations": float(learned.conversations),
            "sft/epoch": self.order.epochs(learned.step),
            **self._stopwatch.take(),
        }
        self.recorder.step(learned.step, metrics, written=self._forget)
        self._tokens += int(metrics["tokens/trained"])

    def _forget(self) -> None:
        self._learned = None

    async def _evaluate(self) -> None:
        """Measure the held-out loss of the weights, where it is not known."""
        version = self.learner.version
        if not self.held_out or (self._latest is not None and self._latest.step == version):
            return
        self.recorder.reporter.activity_started("measuring the held-out loss")
        with self._stopwatch.time("evaluation"):
            what = "the learner to score the held-out conversations"
            self._latest = await finish_within(self.config.training.timeout, what, self._measured, version)
        self._before = self._before or self._latest
        self.recorder.evaluation(self._latest, self._stopwatch.take("evaluation"))

    def _measured(self, version: int) -> HeldOutLoss:
        total, tokens = 0.0, 0
        for first in range(0, len(self.held_out), _SCORED):
            scores = self.learner.score(*targets_of(self.held_out[first : first + _SCORED]))
            total -= float(scores.logprob.sum())
            tokens += len(scores.logprob)
        return HeldOutLoss(version, total / tokens, len(self.held_out), tokens)

    def _due(self, every: int) -> bool:
        return every > 0 and self.learner.version % every == 0 and self.learner.version < self.config.training.steps


class _Learned(NamedTuple):
    """A step that has made new weights."""

    step: int
    conversations: int
    metrics: Mapping[str, float]
    """The learner's."""
