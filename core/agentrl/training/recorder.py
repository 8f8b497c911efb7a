"""The recorder of a run: everything that leaves a training run is written and reported here, in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from agentrl.config.models import Config
from agentrl.costs.cost import Cost
from agentrl.costs.meter import CostMeter
from agentrl.loops import run_in_thread
from agentrl.reporting.contract import Reporter
from agentrl.reporting.hooks import RunHooks
from agentrl.reporting.trackers import Trackers
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.runs.contract import Membership, MetricsLine, RunInfo, Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.ledger import Ledger
from agentrl.runs.metrics import MetricsLog, cost_of
from agentrl.runs.store import EpisodeStore
from agentrl.runs.tally import Tally
from agentrl.runs.trained import TrainedRow

__all__ = ["Measured", "RunRecorder"]


class Measured(Protocol):
    """What an evaluation has measured."""

    @property
    def step(self) -> int:
        """How many optimiser steps made the weights."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """What is logged of it."""
        ...


class RunRecorder:
    """Passes what happens in a run to the episode store, the metrics file, the trackers, the hooks and the reporter."""

    def __init__(
        self,
        folder: RunFolder,
        store: EpisodeStore,
        metrics: MetricsLog,
        trackers: Trackers,
        hooks: RunHooks,
        reporter: Reporter,
        meter: CostMeter,
    ) -> None:
        self.folder = folder
        self.meter = meter
        """What the run costs; whoever asks a model reports to it."""
        self.reporter = reporter
        self.episodes = 0
        """Episodes finished so far."""
        self.tokens = 0
        """Tokens sampled in them."""
        self.tally = Tally()
        """Failures and other counts over these episodes."""
        self._finished = 0
        """Those of training."""
        self._in_flight: set[EpisodeKey] = set()
        self._ledger = Ledger()
        """What became of the episodes that steps have taken."""
        self._store = store
        self._metrics = metrics
        self._trackers = trackers
        self._hooks = hooks
        self._run: RunInfo | None = None
        self._recording: list[Future[None]] = []
        """What steps made of their tokens, as far as it may not be on disk yet."""

    async def start(self, config: Config, resumed_from: int | None = None) -> None:
        """Training is about to begin, or to go on. Raises the error by which a tracker or a plugin refuses the run."""
        run = replace(self.folder.info(config), resumed_from=resumed_from)
        await run_in_thread(self._trackers.start, run, config)
        await run_in_thread(partial(self._hooks.ask, "agentrl_run_started", run=run))
        self._run = run
        self.reporter.run_started(run)
        for note in self._trackers.notes:
            self.reporter.note(note)

    def take_up(self, episodes: Iterable[Episode], lines: Sequence[MetricsLine], spent: Cost) -> None:
        """Count the ``episodes`` that a run had stored before it was resumed; nobody is told of them again.

        ``lines`` are the metrics that it goes on from, and ``spent`` is what the run had cost.
        """
        for episode in episodes:
            self._count(episode)
        for line in lines:
            self._ledger += Ledger.of_metrics(line.metrics)
        self.meter.take_up(spent, cost_of(lines))

    @property
    def ledger(self) -> Ledger:
        """What became of every episode that was started for training, if the run ended now."""
        return self._ledger.ended(self._finished + len(self._in_flight))

    def episode_started(self, key: EpisodeKey) -> None:
        """An episode is started for training."""
        self._in_flight.add(key)

    async def episode(self, episode: Episode) -> None:
        """Store a finished episode durably, then report it. Raises ``RunError`` where it cannot be stored."""
        await self._store.commit([episode])
        self._count(episode)
        self._trackers.log_episode(episode)
        self._tell("agentrl_episode_finished", episode=episode)
        self.reporter.episode_finished(episode)

    def _count(self, episode: Episode) -> None:
        self.episodes += 1
        self.tokens += sum(call.completion_tokens for call in episode.calls)
        self.tally.add(episode)
        if episode.key.phase == "train":
            self._in_flight.discard(episode.key)
            self._finished += 1

    async def begin_step(self, membership: Membership, groups: Sequence[Group]) -> None:
        """Return once it is on disk which groups the next step takes, and which of their episodes it trains.

        Those are the episodes of ``groups``. Raises ``RunError`` where that fails.
        """
        keys = [episode.key for group in groups for episode in group.episodes]
        await self._store.written(self._store.begin_step(membership, keys))

    def batch(self, groups: Sequence[Group]) -> None:
        """The groups of a step are complete and about to be trained."""
        self._tell("agentrl_batch_ready", batch=groups)

    def trained(self, step: int, episodes: Iterable[TrainedRow]) -> None:
        """What a step made of the tokens of its episodes, which is written while the run goes on.

        Not safe beside ``sync``. Raises ``RunError`` where that of a step before could not be written.
        """
        for each in (written := [each for each in self._recording if each.done()]):
            each.result()
        self._recording = [each for each in self._recording if each not in written]
        self._recording.append(self._store.record_training(step, episodes))

    def step(self, step: int, metrics: Mapping[str, float], written: Callable[[], None] = lambda: None) -> None:
        """An optimiser step is done. Raises ``RunError`` where its metrics cannot be written.

        ``written`` is called when they are, before anybody is told.
        """
        metrics = {**metrics, **self.meter.step(metrics)}
        self._log(step, metrics)
        written()
        self._ledger += Ledger.of_metrics(metrics)
        self._tell("agentrl_step_finished", step=step, metrics=metrics)
        self.reporter.step_finished(step, metrics)

    def evaluation(self, evaluation: Measured, seconds: Mapping[str, float]) -> None:
        """An evaluation within the run is done. Raises ``RunError`` where its results cannot be written.

        ``seconds`` are the metrics that say how long it took.
        """
        metrics = {**evaluation.metrics(), **seconds}
        metrics |= self.meter.evaluation(metrics)
        self._log(evaluation.step, metrics)
        self._tell("agentrl_evaluation_finished", step=evaluation.step, metrics=metrics)
        self.reporter.evaluation_finished(evaluation.step, metrics)

    def sync(self) -> None:
        """Return once all metrics, and what steps made of their tokens, are on the disk.

        Raises ``RunError`` where that fails.
        """
        self._metrics.sync()
        for each in self._recording:
            self._store.wait(each)
        self._recording.clear()

    def checkpoint(self, path: Path) -> None:
        """The checkpoint in the folder ``path`` is complete."""
        self._tell("agentrl_checkpoint_saved", path=path)

    def _tell(self, hook: str, **arguments: Any) -> None:
        """Have a hook called. Raises what one has raised, now or since the last call: it ends the run."""
        self._hooks.tell(hook, **arguments)
        self._hooks.check()

    async def settle(self) -> None:
        """Wait until the hooks have heard of everything so far. Raises what one of them has raised."""
        await run_in_thread(self._hooks.settle)

    async def finish(self, summary: Summary) -> None:
        """The run has ended: write the summary and report it. Raises ``RunError`` where it cannot be written."""
        await run_in_thread(self._trackers.finish, summary.outcome, summary)
        for gap in self.meter.gaps():
            self.reporter.warning(gap)
        self.folder.write_summary(summary)
        if self._run is not None:
            try:
                await run_in_thread(
                    partial(self._hooks.ask, "agentrl_run_finished", run=self._run, outcome=summary.outcome)
                )
            finally:
                self._hooks.close()
        self.reporter.run_finished(summary)

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, listeners in (("trackers/failed", self._trackers), ("hooks/failed", self._hooks)):
            if failed := len(listeners.failed):
                metrics = {**metrics, name: failed}
        self._metrics.append(step, metrics)
        self._trackers.log(step, metrics)
