"""The column of a batch that a teacher at an endpoint fills in: its log-probability of every term's token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agentrl.algorithms.teacher import TeacherSettings
from agentrl.config.models import Config
from agentrl.costs.contract import UNMETERED, Meter
from agentrl.learner.contract import Trainable, TrainBatch
from agentrl.rollout.contract import Failure
from agentrl.training.columns import Scored
from agentrl.training.score_log import ScoreLog
from agentrl.training.sources import Sources
from agentrl.training.teachers import EndpointTeacher, digest_of, sequences_of

__all__ = ["EndpointColumn"]

_OTHER_TEMPERATURE = Failure(
    "reward",
    "the teacher did not score it: tokens of it were sampled at another temperature than 1, at which an endpoint tells "
    "no log-probabilities (set rollout.override={temperature: 1})",
    "teacher: another temperature than 1",
)


@dataclass
class EndpointColumn:
    """The column of a teacher at an endpoint, which is asked once about each sequence of a step."""

    teacher: EndpointTeacher
    learner: Trainable
    log: ScoreLog | None
    _step: int = -1
    _logprobs: dict[str, Sequence[float]] = field(default_factory=dict)
    _failures: dict[str, Failure] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        settings: TeacherSettings,
        sources: Sources,
        learner: Trainable,
        config: Config,
        run: Path | None,
        meter: Meter = UNMETERED,
    ) -> EndpointColumn:
        """See whether the endpoint of ``settings`` answers and has the policy's vocabulary.

        ``run`` is the folder in which is kept what it said; ``None`` keeps nothing. ``meter`` is told of every request.
        Raises ``ConfigError`` where the endpoint cannot be asked, or has another vocabulary.
        """
        teacher = EndpointTeacher(settings, meter=meter)
        if sources.tokenizer is not None:
            teacher.check(sources.tokenizer())
        return cls(teacher, learner, None if run is None else ScoreLog(run, config.training.keep))

    def __call__(self, batch: TrainBatch) -> Scored:
        self._begin(self.learner.version + 1)
        values = np.zeros(len(batch.logprob))
        failures = {int(path): _OTHER_TEMPERATURE for path in batch.targets.path[batch.targets.temperature != 1.0]}
        wanted = [(ids, digest_of(ids.tolist()), terms, path) for ids, terms, path in sequences_of(batch)]
        open_ = {
            digest: ids
            for ids, digest, _, path in wanted
            if digest not in self._logprobs and digest not in self._failures and path not in failures
        }
        if open_:
            asked = self.teacher.ask(open_.values())
            self._logprobs |= asked.logprobs
            self._failures |= asked.failures
            if self.log is not None:
                self.log.write(self._step, self._logprobs, self._failures)
        for _, digest, terms, path in wanted:
            if digest in self._failures:
                failures.setdefault(path, self._failures[digest])
            elif path not in failures:
                values[terms] = np.asarray(self._logprobs[digest])[batch.targets.depth[terms]]
        return Scored(values, failures)

    def forget_failures(self) -> None:
        """Have the step ask again, for what was not scored, where it is repeated."""
        self._failures.clear()
        if self.log is not None:
            self.log.write(self._step, self._logprobs, self._failures)

    def _begin(self, step: int) -> None:
        if step != self._step:
            known = None if self.log is None else self.log.read(step)
            self._step = step
            self._logprobs = {} if known is None else dict(known.logprobs)
            self._failures = {} if known is None else dict(known.failures)
