"""One training run, from its folder to its summary, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from agentrl.algorithms.contract import Algorithm
from agentrl.algorithms.presets import build_algorithm
from agentrl.errors import AgentRLError
from agentrl.learner.learner import Learner
from agentrl.loops import finish_in_thread
from agentrl.processors import find_device
from agentrl.reporting.contract import Reporter
from agentrl.reporting.plain import RunLog, final_lines
from agentrl.reporting.reporter import Reporters
from agentrl.reporting.trackers import Trackers
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore
from agentrl.training.backends import build_backend
from agentrl.training.evaluation import Evaluator
from agentrl.training.interrupts import Interrupts
from agentrl.training.loop import TrainingLoop
from agentrl.training.parts import Parts, default_tasks
from agentrl.training.recorder import RunRecorder
from agentrl.training.serving import serve
from agentrl.training.task_order import TaskOrder

__all__ = ["prepare", "train"]


async def train(parts: Parts, reporter: Reporter, interrupts: Interrupts) -> Summary:
    """Train to the end, to one of ``interrupts`` or to an error; each leaves what was learned and a summary.

    Raises ``AgentRLError`` for what stopped the run. An interrupt is no error: the outcome says so.
    """
    told = Reporters(reporter)
    algorithm, trackers = prepare(parts, told)
    if (default := default_tasks(parts)) is not None:
        told.note(default)
    folder = RunFolder.create(parts.config)
    log = RunLog(folder.logs / "run.log")
    told.add(log)
    with (
        contextlib.closing(log),
        EpisodeStore(folder.episodes) as store,
        MetricsLog(folder.metrics) as metrics,
        trackers,
    ):
        for note in store.notes:
            told.note(note)
        recorder = RunRecorder(folder, store, metrics, trackers, parts.plugins, told)
        return await _Run(parts, algorithm, recorder).to_its_end(interrupts)


def prepare(parts: Parts, reporter: Reporter) -> tuple[Algorithm, Trackers]:
    """Build what needs no run folder, so that a wrong name or key is found before there is one.

    Raises ``ConfigError`` or ``PluginError`` for the first of them.
    """
    find_device(parts.config.training.device, "training.device")
    build_backend(parts, version=0)
    algorithm = build_algorithm(parts.plugins, parts.config.algorithm)
    return algorithm, Trackers.build(parts.plugins, parts.config.trackers, warn=reporter.warning)


@dataclass
class _Run:
    parts: Parts
    algorithm: Algorithm
    recorder: RunRecorder
    loop: TrainingLoop | None = None

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    async def to_its_end(self, interrupts: Interrupts) -> Summary:
        outcome, error = await self._outcome(interrupts)
        try:
            await self._save()
        except AgentRLError as unsaved:
            outcome, error = (outcome, error) if error else (f"failed: {unsaved}", unsaved)
        if interrupts.arrived and error is None:
            outcome = "interrupted"
        summary = self._summary(outcome)
        with contextlib.suppress(AgentRLError) if error else contextlib.nullcontext():
            self.recorder.finish(summary)
        if error is not None:
            raise error
        return summary

    async def _outcome(self, interrupts: Interrupts) -> tuple[str, Exception | None]:
        task = asyncio.current_task()
        assert task is not None
        try:
            with interrupts.cancelling(task, rescue=self._rescue):
                async with self._started() as self.loop:
                    await self.loop.run()
        except asyncio.CancelledError:
            task.uncancel()
            return "interrupted", None
        except Exception as error:
            reason = str(error) if isinstance(error, AgentRLError) else f"{type(error).__name__}: {error}"
            if interrupts.arrived:  # What is cancelled may fail of it.
                self.recorder.reporter.warning(f"while the run was being interrupted: {reason}")
                return "interrupted", None
            return f"failed: {reason}", error
        return "completed", None

    def _rescue(self) -> None:
        """Save what was learned from another thread, while code that is not ours holds the event loop."""
        reporter = self.recorder.reporter
        reporter.warning("the event loop does not move, something holds it: saving beside it")
        try:
            if self.loop is not None and self.loop.learner.version > 0:
                self.loop.write_checkpoint()
            summary = self._summary("interrupted")
            self.recorder.folder.write_summary(summary)
        except AgentRLError as error:
            reporter.warning(str(error))
            return
        for line in final_lines(summary):
            reporter.note(line)

    @contextlib.asynccontextmanager
    async def _started(self) -> AsyncIterator[TrainingLoop]:
        parts, recorder, reporter = self.parts, self.recorder, self.recorder.reporter
        config = parts.config
        reporter.activity_started("loading the model")
        algorithm = self.algorithm
        learner = await finish_in_thread(
            Learner, parts.model_folder, config.training, algorithm.correction, algorithm.objective, config.seed
        )
        if learner.rows_because is not None:
            reporter.warning(learner.rows_because)
        reporter.activity_started("starting the inference engine")
        async with serve(
            parts,
            learner.version,
            finished=recorder.episode,
            warn=reporter.warning,
            trains=True,
            logs=recorder.folder.logs,
            say=reporter.note,
        ) as serving:
            recorder.start(config)
            yield TrainingLoop(
                config=config,
                learner=learner,
                algorithm=algorithm,
                serving=serving,
                evaluator=None if parts.eval_tasks is None else Evaluator(serving.dispatcher, parts.eval_tasks, config),
                order=TaskOrder(parts.train_tasks, config.seed),
                recorder=recorder,
                conversing=parts.conversing,
            )

    async def _save(self) -> None:
        if self.loop is not None and self.loop.learner.version > 0:
            await self.loop.save()

    def _summary(self, outcome: str) -> Summary:
        tally = self.recorder.tally
        counted = Summary(
            outcome=outcome,
            episodes=self.recorder.episodes,
            tokens=self.recorder.tokens,
            seconds=time.monotonic() - self._began,
            **tally.counts(),
            reasons=tally.reasons(),
        )
        if self.loop is None:
            return counted
        before, after = self.loop.before, self.loop.current_evaluation
        return replace(
            counted,
            steps=self.loop.learner.version,
            reward_before=None if before is None else before.sampled,
            reward_after=None if after is None else after.sampled,
            reward_before_greedy=None if before is None else before.greedy,
            reward_after_greedy=None if after is None else after.greedy,
            checkpoint=None if self.loop.saved is None else str(self.loop.saved),
        )
