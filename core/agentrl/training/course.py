"""The course of a training run once its folder is there: however it ends, what it learned is saved and summed up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.config.models import Config
from agentrl.costs.meter import CostMeter
from agentrl.errors import AgentRLError, RunError
from agentrl.learner.adapters import plan_adapter
from agentrl.learner.contract import Loss, Trainable
from agentrl.learner.folder import check_unquantised
from agentrl.learner.learner import Learner
from agentrl.learner.optimiser import check_optimiser
from agentrl.loops import Overdue, finish, finish_in_thread, run_in_thread
from agentrl.plugins import Plugins
from agentrl.reporting.hooks import RunHooks
from agentrl.reporting.plain import RunLog, final_lines
from agentrl.reporting.reporter import Reporters
from agentrl.reporting.trackers import Trackers
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore
from agentrl.training.checkpointer import Checkpointer
from agentrl.training.interrupts import Interrupts
from agentrl.training.learner_device import learner_device
from agentrl.training.recorder import RunRecorder
from agentrl.training.stopwatch import Stopwatch

if TYPE_CHECKING:
    from agentrl.training.hosting import Hosting
    from agentrl.training.ranked_learner import RankedLearner

__all__ = ["Course", "CourseLoop", "check_learner", "recording"]


class CourseLoop(Protocol):
    """The loop that trains, as far as the course of a run knows it."""

    @property
    def learner(self) -> Trainable: ...

    @property
    def checkpointer(self) -> Checkpointer: ...

    @property
    def stopwatch(self) -> Stopwatch: ...

    async def run(self) -> None:
        """Train to the last step."""
        ...

    def write_step(self) -> bool:
        """Write the metrics of a step that was interrupted; returns whether the weights may be saved."""
        ...

    def results(self) -> Mapping[str, Any]:
        """The fields of the run's ``Summary`` that tell what was learned."""
        ...


@contextlib.contextmanager
def recording(
    folder: RunFolder, store: EpisodeStore, config: Config, plugins: Plugins, trackers: Trackers, told: Reporters
) -> Iterator[RunRecorder]:
    """Open the files of a run, whose folder ``store`` has locked, and yield what writes to them."""
    with contextlib.ExitStack() as stack:
        told.add(stack.enter_context(contextlib.closing(RunLog(folder.logs / "run.log"))))
        metrics = stack.enter_context(MetricsLog(folder.metrics))
        stack.enter_context(trackers)
        for note in store.notes:
            told.note(note)
        hooks = RunHooks(plugins, told.warning, config.run.hook_timeout)
        yield RunRecorder(folder, store, metrics, trackers, hooks, told, CostMeter(config.prices))


def check_learner(folder: Path, config: Config, note: Callable[[str], None]) -> None:
    """Raise ``ConfigError`` where the model in ``folder`` cannot be trained as ``config`` says.

    ``note`` is told what is going to be trained, where that is not the whole model.
    """
    training = config.training
    check_optimiser(training.optimiser, learner_device(config), together=training.processes > 1)
    check_unquantised(folder)
    if training.lora is not None:
        note(str(plan_adapter(folder, training.lora)))


def _reason(error: Exception) -> str:
    """What a summary says of the error that ended a run."""
    return str(error) if isinstance(error, AgentRLError) else f"{type(error).__name__}: {error}"


class Course(ABC):
    """One run, from where its folder is open to its summary."""

    def __init__(
        self, recorder: RunRecorder, seconds: float = 0.0, hosting: Hosting | None = None, restarts: int = 0
    ) -> None:
        """``seconds`` is how long the run had taken before it was resumed, and ``restarts`` how often it had gone on
        by itself; ``hosting`` are its hosts, where it has any."""
        self.recorder = recorder
        self._hosting = hosting
        self._restarts = restarts
        self._ranked: RankedLearner | None = None
        self._loop: CourseLoop | None = None
        self._began = time.monotonic() - seconds

    @abstractmethod
    def started(self) -> contextlib.AbstractAsyncContextManager[CourseLoop]:
        """A context that starts what the run needs and yields its loop."""

    @abstractmethod
    def going_on(self, summary: Summary) -> str | None:
        """How a run that did not complete is gone on with, for a note."""

    async def learner(
        self, config: Config, plugins: Plugins, folder: Path, loss: Loss, saved: Path | None
    ) -> Trainable:
        """Load the model in ``folder``, here or in processes of its own, which end with the course.

        ``saved`` is the checkpoint whose state it goes on with. Raises as ``Learner`` does.
        """
        self.recorder.reporter.activity_started("loading the model")
        learner: Trainable
        if self._hosting is None or not self._hosting.holds_learner(config):
            learner = await finish_in_thread(Learner, folder, config.training, loss, config.seed)
        else:
            learner = await self._ranks(self._hosting, config, plugins, folder)
        if saved is not None:
            await finish_in_thread(learner.load_state, saved)
        if learner.rows_because is not None:
            self.recorder.reporter.warning(learner.rows_because)
        return learner

    async def _ranks(self, hosting: Hosting, config: Config, plugins: Plugins, folder: Path) -> Trainable:
        """Start the processes of the learner. An interrupt ends the wait for room, for them and for the model."""
        from agentrl.training.ranked_learner import RankedLearner  # No run of one process needs it.

        given_up = threading.Event()

        def start() -> RankedLearner:
            self._ranked = RankedLearner.start(
                hosting.hosts,
                config,
                folder,
                disabled=plugins.disabled,
                logs=self.recorder.folder.logs,
                given_up=given_up,
            )
            return self._ranked

        try:
            return await finish(run_in_thread(start), given_up.set)
        except RunError as error:
            if not given_up.is_set():
                raise
            raise asyncio.CancelledError from error

    def elapsed(self) -> float:
        """Seconds that the run has taken, those before it was resumed included."""
        return time.monotonic() - self._began

    async def to_its_end(self, interrupts: Interrupts) -> Summary:
        """Train until the last step, one of ``interrupts`` or an error, save what was learned, and sum the run up.

        Raises what has stopped the run.
        """
        outcome, error = await self._outcome(interrupts)
        try:
            await self._save()
        except Exception as unsaved:
            outcome, error = (outcome, error) if error else (f"failed: {_reason(unsaved)}", unsaved)
        finally:
            if self._ranked is not None:
                await finish_in_thread(self._ranked.close)
        if interrupts.arrived and error is None:
            outcome = "interrupted"
        summary = self._summary(outcome, interrupts)
        with contextlib.suppress(AgentRLError) if error else contextlib.nullcontext():
            await self.recorder.finish(summary)
        self._advise(outcome, error, summary)
        if error is not None:
            raise error
        return summary

    def _advise(self, outcome: str, error: Exception | None, summary: Summary) -> None:
        """Say how the run is gone on with, unless it does so by itself."""
        note = self.recorder.reporter.note
        if error is not None and self._hosting is not None:
            if self._hosting.goes_on(error):
                return
            if why := self._hosting.advice(error):
                note(why)
        if outcome != "completed" and (advice := self.going_on(summary)) is not None:
            note(advice)

    async def _outcome(self, interrupts: Interrupts) -> tuple[str, Exception | None]:
        task = asyncio.current_task()
        assert task is not None
        try:
            with interrupts.cancelling(task, rescue=partial(self._rescue, interrupts)):
                async with self.started() as self._loop:
                    if self._hosting is not None:
                        self._hosting.loaded(self.recorder.folder.path)
                    await self._run(self._loop)
                    await self.recorder.settle()
        except asyncio.CancelledError:
            task.uncancel()
            return "interrupted", None
        except Exception as error:
            reason = _reason(error)
            if interrupts.arrived:  # A cancellation may make anything fail.
                self.recorder.reporter.warning(f"while the run was being interrupted: {reason}")
                return "interrupted", None
            return f"failed: {reason}", error
        return "completed", None

    async def _run(self, loop: CourseLoop) -> None:
        """Run ``loop``. A deadline that has passed because a process of the learner hangs is the loss of that one."""
        try:
            await loop.run()
        except AgentRLError as error:
            ranked = self._ranked if isinstance(error.__cause__, Overdue) else None
            # Before all else ends: what waits for that process is told that it is lost.
            if ranked is not None and (lost := await finish_in_thread(ranked.given_up_for, error)) is not None:
                raise lost from error
            raise

    def _rescue(self, interrupts: Interrupts) -> None:
        """Save what was learned from another thread, while an agent's code blocks the event loop."""
        reporter = self.recorder.reporter
        reporter.warning("the event loop is blocked: what was learned is saved from another thread")
        try:
            if self._loop is not None:
                self._loop.checkpointer.write(self._loop.write_step)
            summary = self._summary("interrupted", interrupts)
            self.recorder.folder.write_summary(summary)
        except Exception as error:
            reporter.warning(_reason(error))
            return
        for line in final_lines(summary):
            reporter.note(line)

    async def _save(self) -> None:
        if self._loop is not None and self._loop.learner.version > 0:
            await self._loop.checkpointer.save(self._loop.write_step)

    def _summary(self, outcome: str, interrupts: Interrupts) -> Summary:
        tally = self.recorder.tally
        learned: dict[str, Any] = {}
        rest: Mapping[str, float] = {}
        meter = self.recorder.meter
        if self._loop is not None:
            rest = self._loop.stopwatch.read()
            saved = self._loop.checkpointer.newest
            learned = {
                "steps": self._loop.learner.version,
                "checkpoint": None if saved is None else str(saved),
                **self._loop.results(),
            }
        counted: dict[str, Any] = {
            "episodes": self.recorder.episodes,
            "tokens": self.recorder.tokens,
            "seconds": self.elapsed(),
            "restarts": self._restarts,
            "signal": interrupts.name if outcome == "interrupted" else None,
            **tally.counts(),
            "reasons": tally.reasons(),
            "cost": meter.run(rest).to_json(meter.currency),
        }
        return Summary(outcome=outcome, **{**counted, **learned})
