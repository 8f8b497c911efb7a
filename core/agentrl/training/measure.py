"""Evaluating a folder of weights, or the model of an endpoint, outside of a training run; it leaves a run folder."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentrl.config.models import Config
from agentrl.costs.meter import CostMeter
from agentrl.errors import AgentRLError, ConfigError
from agentrl.reporting.contract import Reporter
from agentrl.reporting.plain import FAILURES, RunLog
from agentrl.reporting.reporter import Reporters
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore
from agentrl.runs.tally import Tally
from agentrl.tasks.contract import TaskSet
from agentrl.training.backends import build_backend
from agentrl.training.checkpoints import read_checkpoint
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.parts import EpisodeParts, Parts
from agentrl.training.serving import serve, serve_endpoint

__all__ = ["measure", "measure_endpoint", "printed"]

_MANY_CUT = 0.25
"""From this share of truncated completions on, the result says more about the limit of tokens than about the model."""
_LOG = "run.log"


async def measure(parts: Parts, reporter: Reporter) -> Evaluation:
    """Evaluate the weights in the model folder as the run that saved them did, and return the result.

    The episodes stay in a run folder, which the result names. Raises ``ConfigError`` where the config names no
    held-out tasks, and another ``AgentRLError`` for what stopped the evaluation.
    """
    tasks = _held_out(parts)
    version = read_checkpoint(parts.model_folder).version
    with _recording(parts.config, parts.model_folder, reporter) as recorder:
        told, logs = recorder.reporter, recorder.folder.logs
        told.activity_started("starting the inference engine")
        backend = build_backend(parts, version, logs=logs, say=told.note, trains=False)
        _report_to(recorder, parts)
        async with serve(
            parts,
            backend,
            finished=recorder.episode,
            warn=told.warning,
            trains=False,
            logs=logs,
            meter=recorder.meter,
            say=told.note,
        ) as serving:
            return await _measured(Evaluator(serving.dispatcher, tasks, parts.config), version, recorder)


async def measure_endpoint(parts: EpisodeParts, reporter: Reporter) -> Evaluation:
    """Evaluate the model of an endpoint; returns, keeps and raises as ``measure`` does."""
    tasks, config = _held_out(parts), parts.config
    ends: Counter[str] = Counter()
    with _recording(config, None, reporter) as recorder:
        told, logs = recorder.reporter, recorder.folder.logs

        async def finished(episode: Episode) -> None:
            ends.update(call.finish_reason for call in episode.calls)
            await recorder.episode(episode)

        told.activity_started("asking the endpoint")
        _report_to(recorder, parts)
        async with serve_endpoint(
            parts, finished=finished, warn=told.warning, logs=logs, meter=recorder.meter, say=told.note
        ) as endpoint:
            if not endpoint.greedy:
                told.warning(f"model {config.model.name!r} does not take temperature 0: no greedy reading")
            evaluator = Evaluator(endpoint.dispatcher, tasks, config, greedy=endpoint.greedy)
            measured = await _measured(evaluator, 0, recorder)
        if ends["length"] > _MANY_CUT * ends.total():
            cut = f"{ends['length']} of {ends.total()} completions were cut at their limit of tokens"
            told.warning(
                f"{cut} (raise rollout.max_tokens={config.rollout.max_tokens}; models may think before they answer)"
            )
    return measured


def _report_to(recorder: EvaluationRecorder, parts: EpisodeParts) -> None:
    """Have the reward report what it costs, if it costs anything."""
    if parts.score is not None:
        parts.score.report_to(recorder.meter)


def _held_out(parts: EpisodeParts) -> TaskSet:
    if parts.eval_tasks is None:
        raise ConfigError("tasks.eval is null: there is nothing to evaluate on", fix="set tasks.eval to a task set")
    return parts.eval_tasks


async def _measured(evaluator: Evaluator, version: int, recorder: EvaluationRecorder) -> Evaluation:
    recorder.reporter.activity_started("evaluating", episodes=evaluator.episodes)
    began = time.monotonic()
    evaluation = await evaluator.run(version)
    return recorder.conclude(evaluation, time.monotonic() - began)


@dataclass
class EvaluationRecorder:
    """Stores the episodes of an evaluation, reports them and sums them up."""

    folder: RunFolder
    reporter: Reporter
    store: EpisodeStore
    metrics: MetricsLog
    meter: CostMeter
    tally: Tally = field(default_factory=Tally)
    tokens: int = 0
    measured: Evaluation | None = None

    async def episode(self, episode: Episode) -> None:
        """Store a finished episode durably, then report it. Raises ``RunError`` where it cannot be stored."""
        await self.store.commit([episode])
        self.tokens += sum(call.completion_tokens for call in episode.calls)
        self.tally.add(episode)
        self.reporter.episode_finished(episode)

    def conclude(self, evaluation: Evaluation, seconds: float) -> Evaluation:
        """Write ``evaluation``, which took so many seconds, to the metrics file and report failures.

        Returns it with the folder of its episodes, and what it cost with all that it took to start.
        """
        metrics = {**evaluation.metrics(), "seconds/evaluation": seconds}
        self.metrics.append(evaluation.step, metrics | self.meter.evaluation(metrics))
        self.measured = replace(evaluation, folder=self.folder.path, cost=self._cost())
        for gap in self.meter.gaps():
            self.reporter.warning(gap)
        for line in self.tally.lines(FAILURES):
            self.reporter.warning(line)
        for line in self.tally.lines(kind for kind in self.tally.kinds if kind not in FAILURES):
            self.reporter.note(line)
        return self.measured

    def _cost(self) -> dict[str, Any]:
        return self.meter.run().to_json(self.meter.currency)

    def summary(self, outcome: str, seconds: float, checkpoint: Path | None) -> Summary:
        """The same summary that a training run writes; ``seconds`` is the duration of the evaluation."""
        measured = self.measured
        return Summary(
            outcome=outcome,
            steps=0 if measured is None else measured.step,
            episodes=self.tally.episodes,
            tokens=self.tokens,
            seconds=seconds,
            reward_after=None if measured is None else measured.sampled,
            reward_after_greedy=None if measured is None else measured.greedy,
            checkpoint=None if checkpoint is None else str(checkpoint),
            **self.tally.counts(),
            reasons=self.tally.reasons(),
            cost=self._cost(),
        )


@contextlib.contextmanager
def _recording(config: Config, checkpoint: Path | None, reporter: Reporter) -> Iterator[EvaluationRecorder]:
    """Make the run folder for an evaluation of the weights in ``checkpoint``, and write its summary at the end.

    The folder of an evaluation that fails before its first episode is removed, unless an agent's or the backend's
    process has printed something. Raises ``ConfigError`` or ``RunError`` where the folder cannot be made or written.
    """
    folder, began = RunFolder.create_evaluation(config, checkpoint), time.monotonic()
    episodes = 0
    try:
        with (
            contextlib.closing(RunLog(folder.logs / _LOG)) as log,
            EpisodeStore(folder.episodes) as store,
            MetricsLog(folder.metrics) as metrics,
        ):
            recorder = EvaluationRecorder(folder, Reporters(reporter, log), store, metrics, CostMeter(config.prices))
            for note in store.notes:
                recorder.reporter.note(note)
            outcome = "interrupted"
            try:
                yield recorder
                outcome = "completed"
            except Exception as error:
                outcome = f"failed: {error}" if isinstance(error, AgentRLError) else f"failed: {type(error).__name__}"
                raise
            finally:
                episodes = recorder.tally.episodes
                summary = recorder.summary(outcome, time.monotonic() - began, checkpoint)
                log.run_finished(summary)
                with contextlib.nullcontext() if outcome == "completed" else contextlib.suppress(AgentRLError):
                    folder.write_summary(summary)
    except BaseException:
        if episodes or printed(folder):
            reporter.note(f"what there is of the evaluation is in {folder.path}")
        else:
            folder.remove()
        raise


def printed(folder: RunFolder) -> bool:
    """Whether a process of an agent or of the backend has printed anything into the logs."""
    logs = [path for path in folder.logs.rglob("*.log*") if path.name != _LOG]
    return any(not line.startswith(b"--- ") for log in logs for line in log.read_bytes().splitlines())
