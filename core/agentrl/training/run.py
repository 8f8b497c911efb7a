"""One training run, from its folder to its summary, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.algorithms.batch import qualifies
from agentrl.algorithms.building import build_algorithm
from agentrl.algorithms.contract import Algorithm
from agentrl.algorithms.filters import NoFilter
from agentrl.algorithms.soundness import check_command, check_groups
from agentrl.errors import ConfigError
from agentrl.inference.contract import Backend
from agentrl.inference.grammars import grammars_of
from agentrl.loops import finish_in_thread
from agentrl.reporting.contract import Reporter
from agentrl.reporting.reporter import Reporters
from agentrl.reporting.trackers import Trackers
from agentrl.rollout.buffer import GroupBuffer
from agentrl.rollout.contract import EpisodeKey
from agentrl.rollout.dispatcher import Dispatcher
from agentrl.rollout.staleness import StalenessBound
from agentrl.runs.contract import Summary
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsReader, cut_after
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.training.backends import build_backend, sleeper
from agentrl.training.checkpoints import read_checkpoint
from agentrl.training.columns import Columns
from agentrl.training.course import Course, check_learner, recording
from agentrl.training.engine_weights import Lender
from agentrl.training.evaluation import Evaluator
from agentrl.training.interrupts import Interrupts
from agentrl.training.learner_device import learner_device
from agentrl.training.loop import TrainingLoop
from agentrl.training.online import OnlineParts, SessionSupply, serving_engine, with_batch_baseline
from agentrl.training.parts import Parts, default_tasks
from agentrl.training.recorder import RunRecorder
from agentrl.training.replay import Lineage, Replay, Resumed
from agentrl.training.requests import group_request
from agentrl.training.resume import ResumePoint
from agentrl.training.serving import EngineServing, Serving, serve
from agentrl.training.sessions import Ready
from agentrl.training.sharing import sharing
from agentrl.training.sources import Sources
from agentrl.training.stopwatch import Stopwatch
from agentrl.training.supply import GroupSupply, Supply
from agentrl.training.task_order import TaskOrder

if TYPE_CHECKING:
    from agentrl.hosting.contract import Hosts
    from agentrl.training.hosting import Hosting

__all__ = ["Built", "build", "train"]


async def train(
    parts: Parts | OnlineParts,
    reporter: Reporter,
    interrupts: Interrupts,
    resumed_from: ResumePoint | None = None,
    hosting: Hosting | None = None,
) -> Summary:
    """Train until the last step, one of ``interrupts`` or an error, and return the summary of the run.

    Each of the three saves what was learned and writes the summary. ``resumed_from`` says where a run goes on that has
    ended before; without it there is a new one. ``hosting`` are its hosts, where it has any. Raises ``ConfigError`` or
    ``PluginError``, and leaves no new run folder, where something that the config names cannot be built, and another
    ``AgentRLError`` for what stopped the run. An interrupt raises nothing: the outcome says so.
    """
    told, hosts = Reporters(reporter), None if hosting is None else hosting.hosts
    folder = RunFolder.create(parts.config) if resumed_from is None else resumed_from.folder
    try:
        built = build(
            parts, told, folder.logs, version=0 if resumed_from is None else resumed_from.version, hosts=hosts
        )
    except BaseException:
        if resumed_from is None:
            folder.remove()
        raise
    if isinstance(parts, Parts) and (default := default_tasks(parts)) is not None:
        told.note(default)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(EpisodeStore(folder.episodes))  # First, since it locks the folder.
        resumed = _taken_up(resumed_from, parts) if resumed_from is not None and isinstance(parts, Parts) else None
        opened = recording(folder, store, parts.config, parts.plugins, built.trackers, told)
        recorder = stack.enter_context(opened)
        if resumed_from is not None and resumed is not None:
            told.note(_resumed_text(resumed_from, resumed))
            recorder.take_up(EpisodeReader(folder.episodes).outlines(), resumed.lines, resumed.spent)
        restarts = 0 if resumed_from is None else resumed_from.restarts
        return await _Run(parts, built, recorder, reporter, resumed, hosting, restarts).to_its_end(interrupts)


_MEASURED = ("tasks.eval", "evaluation.", "agent", "reward", "rollout.", "inference.", "gateway.")
"""Keys that an evaluation depends on."""


def _taken_up(point: ResumePoint, parts: Parts) -> Resumed:
    """Make the folder of a run ready to go on from ``point``, and read what there is to go on with."""
    config, folder = parts.config, point.folder
    order = TaskOrder(parts.train_tasks, config.seed)

    def samples(ordinal: int, attempt: int) -> Sequence[int]:
        return group_request(config, order, ordinal, lambda: 0, attempt=attempt).samples

    replay = Replay(EpisodeReader(folder.episodes), point.version, samples)
    spent = Run(folder.path).cost  # Before what it ended with is removed.
    folder.reopen(config)
    folder.prune([each.path for each in point.damaged])  # They are made again.
    logged = cut_after(folder.metrics, point.version)
    device = learner_device(config)
    saved = None if point.checkpoint is None else point.checkpoint.path
    return Resumed(
        replay=replay,
        lineage=Lineage(logged, exact=device.type == "cpu"),
        checkpoint=saved,
        lines=MetricsReader(folder.metrics).read(),
        spent=spent,
        seconds=0.0 if saved is None else read_checkpoint(saved).seconds,
        measures_anew=any(change.key.startswith(_MEASURED) for change in point.changed),
    )


def _resumed_text(point: ResumePoint, resumed: Resumed) -> str:
    """What a run that is resumed goes on from."""
    steps = len(resumed.replay)
    repeated = f", and {steps} step{'' if steps == 1 else 's'} after it from stored episodes" if steps else ""
    changed = f", with {'; '.join(map(str, point.changed))}" if point.changed else ""
    damaged = f" ({', '.join(each.path.name for each in point.damaged)} is damaged)" if point.damaged else ""
    return f"resumed from step {point.version}{damaged}{repeated}{changed}"


@dataclass(frozen=True, slots=True)
class Built:
    """What a run is made of beside its ``Parts``; nothing of it is started."""

    backend: Backend
    lender: Lender
    """Has the learner's weights for the backend, once there is a learner."""
    algorithm: Algorithm
    sources: Sources
    """Where the further models are that the algorithm needs."""
    trackers: Trackers


def build(
    parts: Parts | OnlineParts,
    reporter: Reporter,
    logs: Path | None = None,
    *,
    version: int = 0,
    hosts: Hosts | None = None,
) -> Built:
    """Build the backend, the algorithm and the trackers that the config names, and start nothing.

    ``version`` is the policy version of the weights in the model folder. ``logs`` is the folder for what the backend's
    processes print, and ``hosts`` start them where the scheduler does. Raises ``ConfigError`` or ``PluginError`` for
    the first name or key that is wrong.
    """
    training = parts.config.training
    check_learner(parts.model_folder, parts.config, reporter.note)
    algorithm = build_algorithm(parts.plugins, parts.config.algorithm, updates=training.minibatches)
    check_command(algorithm, "train")
    if isinstance(parts, Parts) and training.steps:
        _check_groups(parts, algorithm)
    replaced = parts.config.rollout.dynamic_sampling and not isinstance(parts, OnlineParts)
    if replaced and all(isinstance(each, NoFilter) for each in algorithm.filter):
        reporter.warning(
            "rollout.dynamic_sampling has no effect: the algorithm has no filter that leaves out a group to "
            f"replace (set algorithm={{name: {algorithm.name}, filter: zero_variance}})"
        )
    lender = Lender()
    backend = build_backend(parts, version=version, logs=logs, say=reporter.note, lender=lender, hosts=hosts)
    if sleeper(backend) is not None:
        from agentrl.training.turns import check_turns

        check_turns(parts.config)
    return Built(
        backend=backend,
        lender=lender,
        algorithm=with_batch_baseline(algorithm) if isinstance(parts, OnlineParts) else algorithm,
        sources=Sources.of(algorithm, parts.config, parts.plugins, parts.model_folder, is_original=version == 0),
        trackers=Trackers.build(
            parts.plugins, parts.config.trackers, warn=reporter.warning, patience=parts.config.run.hook_timeout
        ),
    )


def _check_groups(parts: Parts, algorithm: Algorithm) -> None:
    """Raise ``ConfigError`` where groups have a single episode, and something compares those of a group."""
    size = parts.config.rollout.group_size
    check_groups(algorithm, size)
    if size == 1 and parts.score is not None and parts.score.compares:
        raise ConfigError(
            "rollout.group_size=1 leaves the reward nothing to compare: it ranks the answers of a group",
            fix="raise rollout.group_size, or set another reward, such as judge",
            key="rollout.group_size",
        )


class _Run(Course):
    def __init__(
        self,
        parts: Parts | OnlineParts,
        built: Built,
        recorder: RunRecorder,
        display: Reporter,
        resumed: Resumed | None,
        hosting: Hosting | None,
        restarts: int,
    ) -> None:
        """``display`` shows what no log may hold."""
        super().__init__(recorder, 0.0 if resumed is None else resumed.seconds, hosting, restarts)
        self.parts = parts
        self.built = built
        self.display = display
        self.resumed = resumed

    def going_on(self, summary: Summary) -> str | None:
        path = self.recorder.folder.path
        if not isinstance(self.parts, OnlineParts):
            return f"resume it with: agentrl train --resume {path}"
        return None if summary.checkpoint is None else f"go on with: agentrl train online model={path}"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[TrainingLoop]:
        parts, recorder, reporter = self.parts, self.recorder, self.recorder.reporter
        config = parts.config
        algorithm = self.built.algorithm
        saved = None if self.resumed is None else self.resumed.checkpoint
        learner = await self.learner(config, parts.plugins, parts.model_folder, algorithm.loss, saved)
        columns = await finish_in_thread(
            partial(
                Columns.load,
                algorithm,
                learner,
                self.built.sources,
                config,
                run=recorder.folder.path,
                warn=reporter.warning,
                meter=recorder.meter,
            )
        )
        reporter.activity_started("starting the inference engine")
        self.built.lender.learner = learner
        if sleeper(self.built.backend) is not None:  # It starts in the memory that the learner's states have left.
            await finish_in_thread(learner.set_aside)
        async with contextlib.AsyncExitStack() as stack:
            shared = stack.enter_context(sharing(learner, self.built.backend))
            source = await stack.enter_async_context(self._source(learner.version))
            await recorder.start(config, None if self.resumed is None else self.resumed.replay.version)
            yield TrainingLoop(
                config=config,
                learner=learner,
                columns=columns,
                serving=source.serving,
                evaluator=source.evaluator,
                supply=source.supply,
                recorder=recorder,
                conversing=parts.conversing,
                grammars=grammars_of(parts.model_folder),
                sharing=shared,
                resumed=self.resumed,
                elapsed=self.elapsed,
                lender=self.built.lender,
            )

    def _evaluator(self, serving: Serving, parts: Parts) -> Evaluator | None:
        tasks, config = parts.eval_tasks, parts.config
        if tasks is None:
            return None
        if self.resumed is None:
            return Evaluator(serving.dispatcher, tasks, config)
        return Evaluator(serving.dispatcher, tasks, config, kept=self.resumed.evaluated)

    @contextlib.asynccontextmanager
    async def _source(self, version: int) -> AsyncIterator[_Source]:
        """Start what samples the model: an agent's episodes against it, or a service of sessions."""
        parts, backend, recorder, warn = self.parts, self.built.backend, self.recorder, self.recorder.reporter.warning
        if isinstance(parts, OnlineParts):
            async with serving_engine(parts, backend, warn) as engine:
                supply = SessionSupply(parts, engine, recorder, self._tell_ready, version)
                yield _Source(engine, None, lambda stopwatch: supply)
            return
        if parts.score is not None:
            parts.score.keep_in(recorder.folder.path)
            parts.score.report_to(recorder.meter)
        async with serve(
            parts,
            backend,
            finished=recorder.episode,
            warn=warn,
            trains=True,
            logs=recorder.folder.logs,
            meter=recorder.meter,
            hosts=None if self._hosting is None else self._hosting.hosts,
            say=recorder.reporter.note,
        ) as serving:
            supply_of = partial(
                _rolled_out, parts, self.built.algorithm, serving.dispatcher, version, recorder.episode_started
            )
            yield _Source(serving, self._evaluator(serving, parts), supply_of)

    def _tell_ready(self, ready: Ready) -> None:
        """Say where sessions are served. A key that was made is shown, and kept nowhere."""
        told = self.recorder.reporter
        told.note(f"{ready.model} is served at {ready.url} and learns from rewarded sessions (Ctrl-C stops it)")
        told.note("nothing is evaluated meanwhile: `agentrl eval CHECKPOINT agent=AGENT` measures a checkpoint")
        if ready.admin_key is not None:
            self.display.note(f"admin key, shown once: {ready.admin_key}")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a run's episodes come from."""

    serving: EngineServing
    evaluator: Evaluator | None
    supply: Callable[[Stopwatch], Supply]


def _rolled_out(
    parts: Parts,
    algorithm: Algorithm,
    dispatcher: Dispatcher,
    version: int,
    started: Callable[[EpisodeKey], None],
    stopwatch: Stopwatch,
) -> GroupSupply:
    """The supply of groups of the training tasks, whose first step trains the weights of ``version``."""
    rollout = parts.config.rollout
    bound = StalenessBound(rollout.max_staleness, rollout.tasks_per_step)
    replaceable = rollout.dynamic_sampling * rollout.tasks_per_step
    return GroupSupply(
        parts.config,
        dispatcher,
        TaskOrder(parts.train_tasks, parts.config.seed),
        GroupBuffer(bound, rollout.on_stale, version, replaceable=replaceable),
        qualifies=partial(qualifies, algorithm=algorithm),
        stopwatch=stopwatch,
        started=started,
    )
