"""``Trainer``: the entry point for scripts and the command line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from agentrl.agents.binding import reference_of
from agentrl.algorithms.building import build_algorithm
from agentrl.config.checks import check_trainable
from agentrl.config.loader import load_config
from agentrl.config.models import Config, ReplaySection, SftSection
from agentrl.environments import entries_elsewhere
from agentrl.errors import ConfigError, HostLostError
from agentrl.extras import missing_extras
from agentrl.hosting.contract import Scheduler
from agentrl.learner.folder import check_unquantised
from agentrl.learner.optimiser import check_optimiser
from agentrl.plugins import Plugins
from agentrl.plugins.building import PartLike
from agentrl.reporting.contract import Reporter
from agentrl.reporting.reporter import default_reporter
from agentrl.rewards.scoring import Scorer, load_reward
from agentrl.rollout.contract import Phase
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.reader import open_run
from agentrl.training.backends import is_chat, named_by_endpoint
from agentrl.training.choices import Choice, choices, told
from agentrl.training.evaluation import Evaluation
from agentrl.training.interrupts import Interrupts, run_to_end
from agentrl.training.learner_device import learner_device
from agentrl.training.measure import measure, measure_endpoint
from agentrl.training.offline import OfflineParts, resolve_offline, train_offline
from agentrl.training.online import OnlineParts, not_resumed, resolve_online
from agentrl.training.parts import ANY_ENGINE, Parts, check_sampling, resolve_episode_parts, resolve_parts
from agentrl.training.plan import planned
from agentrl.training.rescoring import Rescorer, Rescoring, rescore
from agentrl.training.resume import ResumePoint, check_config, find_resume_point, of_run
from agentrl.training.run import build, train
from agentrl.training.schedulers import build_scheduler, hosting_of
from agentrl.training.sft import SftParts, fine_tune, resolve_sft
from agentrl.training.sources import Sources

if TYPE_CHECKING:
    from agentrl.training.hosting import Hosting

__all__ = ["Trainer"]

Result = TypeVar("Result")
RunParts = TypeVar("RunParts", Parts, OnlineParts)
_Running: TypeAlias = "Callable[[Interrupts, ResumePoint | None, Hosting | None], Coroutine[Any, Any, Summary]]"
"""A run, from where it goes on, if it has begun before, and with its hosts, if it has any."""

_ENDING = "interrupted: ending the evaluation"
_SCORING = "interrupted: ending the scoring"
_SAVING = "interrupted: saving what was learned"


class Trainer:
    """Trains and evaluates the model behind an agent, as ``config`` says.

    ::

        with Trainer(load_config("config.yaml", "training.steps=100")) as trainer:
            summary = trainer.train(agent="math")

    ``reporter`` shows how it goes; by default a live display on a terminal and plain lines elsewhere.
    """

    def __init__(
        self,
        config: Config,
        *,
        plugins: Plugins | None = None,
        reporter: Reporter | None = None,
        run: str | os.PathLike[str] | None = None,
    ) -> None:
        """``run`` is the folder of a run that ``train`` goes on with, by ``config``; see ``resume``."""
        self._run = None if run is None else open_run(run, runs=config.run.dir).path
        self.config = config if self._run is None else of_run(config, self._run)
        self.plugins = Plugins(elsewhere=entries_elsewhere) if plugins is None else plugins
        self.reporter = default_reporter() if reporter is None else reporter

    @classmethod
    def resume(
        cls,
        run: str | os.PathLike[str],
        *overrides: str,
        plugins: Plugins | None = None,
        reporter: Reporter | None = None,
    ) -> Self:
        """A trainer whose ``train`` goes on with the run in the folder ``run``, or of that name in ``runs``.

        ::

            with Trainer.resume("runs/quickstart", "training.steps=100") as trainer:
                summary = trainer.train()

        The config is that of the run, but for ``overrides`` such as ``training.steps=100``. Steps after the newest
        checkpoint are repeated from the episodes that are stored. Raises ``ConfigError`` where there is no such run.
        """
        folder = open_run(run).path
        return cls(load_config(folder / "config.yaml", *overrides), plugins=plugins, reporter=reporter, run=folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the display down. Safe to call twice."""
        self.reporter.close()

    @missing_extras()
    def train(self, agent: Any = None, *, workflow: Any = None) -> Summary:
        """Train the model behind ``agent``, and return what the run folder's ``summary.json`` holds.

        ``agent`` is a class, an object or a function, or names one: a registered name, ``pkg.mod:Obj``,
        ``pkg.mod.Obj`` or ``file.py:Obj``. By default it is the config's. ``workflow`` is another name of ``agent``.
        ``online`` serves sessions and learns from those that are rewarded, until it is interrupted or the last step.

        The summary's outcome is ``interrupted`` after Ctrl-C, SIGTERM or SIGHUP, with what was learned saved. Raises
        ``ConfigError`` or ``PluginError`` before anything has started, and another ``AgentRLError`` for what stopped
        the run.
        """
        with self._configured(agent, workflow) as (config, target):
            point, parts = self._trainable(config, target)
            scheduler = self._scheduler(config, parts.model_folder)
            self._tell_choices(config, parts)

            def again(folder: Path) -> tuple[ResumePoint | None, _Running]:
                point, parts = self._trainable(
                    of_run(load_config(folder / "config.yaml", environ={}), folder), target, folder
                )
                return point, partial(train, parts, self.reporter)

            first = point, partial(train, parts, self.reporter)
            restarts = 0 if config.is_online else config.training.restarts  # Nobody can repeat what people did.
            return scheduler.run(lambda: self._to_its_end(*first, hosting_of(scheduler, restarts), again))

    @missing_extras()
    def check(self, agent: Any = None, *, workflow: Any = None) -> Sequence[Choice]:
        """Raise what ``train`` would raise before it starts anything; nothing is started or written.

        Returns what a run would choose where the config leaves it open: a key, its value, and why.
        """
        with self._configured(agent, workflow) as (config, target):
            point, parts = self._trainable(config, target)
            self._scheduler(config, parts.model_folder)
            if point is None:
                RunFolder.check(parts.config)
            build(parts, self.reporter)
            return choices(config, parts.config, self.plugins, parts.model_folder)

    @missing_extras()
    def sft(self, data: str | os.PathLike[str] | None = None) -> Summary:
        """Imitate conversations, and return what the run folder's ``summary.json`` holds.

        ``data`` is a file of JSON lines, each with ``messages`` in the form of the OpenAI API and perhaps ``tools``, or
        a run, of which the episodes are imitated; by default it is the config's ``sft.data``. Interrupts and errors are
        as of ``train``.
        """
        with self._configured(None, None) as (config, _):
            point, parts = self._imitable(config, data)
            scheduler = self._scheduler(config, parts.model_folder)
            self._tell_choices(config, parts)

            def again(folder: Path) -> tuple[ResumePoint | None, _Running]:
                point, parts = self._imitable(
                    of_run(load_config(folder / "config.yaml", environ={}), folder), None, folder
                )
                return point, partial(fine_tune, parts, self.reporter)

            first = point, partial(fine_tune, parts, self.reporter)
            restarts = config.training.restarts
            return scheduler.run(lambda: self._to_its_end(*first, hosting_of(scheduler, restarts), again))

    @missing_extras()
    def check_sft(self, data: str | os.PathLike[str] | None = None) -> Sequence[Choice]:
        """Raise what ``sft`` would raise before it starts anything; nothing is started or written.

        Says what there is to imitate, and returns what a run would choose, as ``check`` does.
        """
        with self._configured(None, None) as (config, _):
            point, parts = self._imitable(config, data)
            self._scheduler(config, parts.model_folder)
            if point is None:
                RunFolder.check(parts.config)
            self.reporter.note(parts.told())
            return choices(config, parts.config, self.plugins, parts.model_folder)

    @missing_extras()
    def replay(self, run: str | os.PathLike[str] | None = None, *, rescored: bool = False) -> Summary:
        """Train from the stored episodes of ``run``, and return what the new run folder's ``summary.json`` holds.

        By default the run is the config's ``replay.run``. Nothing is sampled. With ``rescored`` the config's reward
        scores the episodes again; without it they keep their rewards. Interrupts and errors are as of ``train``.
        """
        with self._configured(None, None) as (config, _):
            parts = self._replayable(config, run, rescored=rescored)
            scheduler = self._scheduler(config, parts.model_folder)
            self._tell_choices(config, parts)
            first = None, partial(train_offline, parts, self.reporter)
            return scheduler.run(lambda: self._to_its_end(*first, hosting_of(scheduler)))

    @missing_extras()
    def check_replay(self, run: str | os.PathLike[str] | None = None, *, rescored: bool = False) -> Sequence[Choice]:
        """Raise what ``replay`` would raise before it starts anything; nothing is started or written.

        Says what is going to be trained, and returns what a run would choose, as ``check`` does.
        """
        with self._configured(None, None) as (config, _):
            parts = self._replayable(config, run, rescored=rescored)
            self._scheduler(config, parts.model_folder)
            RunFolder.check(parts.config)
            self.reporter.note(parts.told())
            return choices(config, parts.config, self.plugins, parts.model_folder)

    @missing_extras()
    def rescore(self, run: str | os.PathLike[str], *rewards: PartLike, phase: Phase = "train") -> list[Rescoring]:
        """Score the stored episodes of ``run`` by other rewards, and return what each of ``rewards`` makes of them.

        Without any it is the config's. No model is called and nothing is written. ``phase`` says which episodes: those
        of training, or of an evaluation. Raises ``ConfigError`` or ``PluginError`` for a reward that cannot be built,
        ``RunError`` where one scores no episode at all, and ``KeyboardInterrupt`` where it is interrupted.
        """
        with self._configured(None, None) as (config, _):
            opened = open_run(run, runs=config.run.dir)
            named = rewards or (() if config.reward is None else (config.reward,))
            if not named:
                raise ConfigError("nothing says which reward to score by", fix="name one of `agentrl list-rewards`")
            timeout, answers = config.rollout.episode_timeout, config.replay.answer
            rescorers = [
                (part.name, Rescorer(Scorer(reward), timeout, answers, phase == "train"))
                for part in named
                for reward in [load_reward(self.plugins, part, at="--reward" if rewards else "reward")]
            ]

            async def scored() -> list[Rescoring]:
                concurrency = config.rollout.concurrency
                return [
                    await rescore(opened, name, rescorer, phase, concurrency, self.reporter)
                    for name, rescorer in rescorers
                ]

            return self._measured(scored, _SCORING)

    @missing_extras()
    def evaluate(self, checkpoint: str | Path | None = None, agent: Any = None, *, workflow: Any = None) -> Evaluation:
        """Measure the weights in the folder ``checkpoint``, by default the config's model, on the held-out tasks.

        ``agent`` and ``workflow`` are as for ``train``. A checkpoint measures what it measured in its run. With a
        backend such as ``openai`` the model is that of the endpoint, and ``checkpoint`` another name of one there.
        Raises as ``train`` does, and ``KeyboardInterrupt`` once what was started has ended, where it is interrupted.
        """
        with self._configured(agent, workflow, checkpoint) as (config, target):
            if is_chat(config, self.plugins):
                config = config if checkpoint is not None else named_by_endpoint(config)
                talking = resolve_episode_parts(config, self.plugins, target)
                return self._measured(lambda: measure_endpoint(talking, self.reporter))
            parts = resolve_parts(config, self.plugins, target)
            self._tell_choices(config, parts, "training.")
            return self._measured(lambda: measure(parts, self.reporter))

    def _tell_choices(self, config: Config, parts: Parts | OnlineParts | SftParts | OfflineParts, *unused: str) -> None:
        """Say what the run has chosen; keys that begin as ``unused`` say mean nothing to it."""
        for choice in choices(config, parts.config, self.plugins, parts.model_folder):
            if not choice.key.startswith(unused):
                self.reporter.note(f"{choice.key} is {told(choice.value)}, {choice.why}")

    def _scheduler(self, config: Config, model_folder: Path) -> Scheduler:
        """The scheduler of ``config``, for a run of the model in ``model_folder``.

        Says where the processes are going to be, if there is more than this one.
        """
        scheduler = build_scheduler(self.plugins, config, self.reporter, model_folder)
        if config.training.processes > 1:
            from agentrl.training.placement import placed

            self.reporter.note(placed(config))
        return scheduler

    def _to_its_end(
        self,
        point: ResumePoint | None,
        running: _Running,
        hosting: Hosting | None,
        again: Callable[[Path], tuple[ResumePoint | None, _Running]] | None = None,
    ) -> Summary:
        """Run to the end, from ``point`` on where there is one, and over again where a process of the run is lost.

        ``again`` says where the run in a folder goes on, and with what; without it a lost process ends the run.
        """
        with self._interrupts(_SAVING, resumable=True) as interrupts:
            while True:
                try:
                    return run_to_end(partial(running, interrupts, point, hosting), interrupts)
                except HostLostError as lost:
                    if hosting is None or hosting.run is None or again is None or not hosting.goes_on(lost):
                        raise
                    self.reporter.warning(f"{lost.message}; the run goes on by itself ({hosting.restarted()})")
                    point, running = again(hosting.run)
                    if point is not None:
                        point = replace(point, restarts=point.restarts + 1)

    def _measured(self, measuring: Callable[[], Coroutine[Any, Any, Result]], ending: str = _ENDING) -> Result:
        async def main() -> Result:
            task = asyncio.current_task()
            assert task is not None
            with interrupts.cancelling(task):
                return await measuring()

        with self._interrupts(ending) as interrupts:
            try:
                measured = run_to_end(main, interrupts)
            except (Exception, asyncio.CancelledError) as error:
                if interrupts.arrived:
                    raise KeyboardInterrupt from error
                raise
        if interrupts.arrived:
            raise KeyboardInterrupt
        return measured

    def _interrupts(self, what: str, *, resumable: bool = False) -> Interrupts:
        def announce() -> None:
            again = " (Ctrl-C again to stop at once)" if interrupts.first == signal.SIGINT else ""
            self.reporter.note(f"{what}{again}")

        interrupts = Interrupts(announce, self.reporter.close, resumable=resumable)
        return interrupts

    def _trainable(
        self, config: Config, target: Any, run: Path | None = None
    ) -> tuple[ResumePoint | None, Parts | OnlineParts]:
        """Where the run in the folder ``run``, by default the one that this trainer resumes, goes on, and its parts."""
        run = self._run if run is None else run
        if config.is_imitation:
            if run is not None:
                raise _of_another_command(run, "sft")
            config = config.model_copy(update={"sft": SftSection()})  # Which `ineffective_keys` tells of.
        if config.is_replay:
            if run is not None:
                raise ConfigError(
                    f"the run {run} trains from stored episodes, and is not resumed",
                    fix="start it again with agentrl replay, or another from its newest checkpoint with model=RUN",
                )
            config = config.model_copy(update={"replay": ReplaySection()})
        if config.is_online and target is None:
            if run is not None:
                raise not_resumed(run)
            return None, self._planned(resolve_online(config, self.plugins))
        check_trainable(config)
        point = None if run is None else find_resume_point(run)
        saved = None if point is None else point.checkpoint
        parts = resolve_parts(config, self.plugins, target, weights=None if saved is None else saved.path)
        check_sampling(config, ANY_ENGINE, trains=True)
        parts = self._planned(parts, is_original=saved is None)
        if point is not None:
            point = replace(point, changed=check_config(parts.config, point.folder.path, self.config.written_at))
        return point, parts

    def _replayable(self, config: Config, run: str | os.PathLike[str] | None, *, rescored: bool) -> OfflineParts:
        """What a run from stored episodes needs."""
        if run is not None:
            section = config.replay.model_copy(update={"run": os.fspath(run)})
            changed = config.model_copy(update={"replay": section, "sft": SftSection()})
            changed.remember(config.written_at)
            config = changed
        return resolve_offline(config, self.plugins, self.reporter, rescored=rescored)

    def _planned(self, parts: RunParts, *, is_original: bool = True) -> RunParts:
        """``parts`` with passes that fit the memory. Says what the run takes, or raises where it does not fit."""
        config, training, folder = parts.config, parts.config.training, parts.model_folder
        check_optimiser(training.optimiser, learner_device(config), together=training.processes > 1)
        check_unquantised(folder)
        algorithm = build_algorithm(parts.plugins, config.algorithm, updates=training.minibatches)
        sources = Sources.of(algorithm, config, parts.plugins, folder, is_original=is_original)
        return replace(parts, config=planned(config, folder, self.reporter.note, beside=sources.frozen))

    def _imitable(
        self, config: Config, data: str | os.PathLike[str] | None, run: Path | None = None
    ) -> tuple[ResumePoint | None, SftParts]:
        """As ``_trainable``, of a run that imitates ``data``."""
        run = self._run if run is None else run
        if run is not None and not config.is_imitation:
            raise _of_another_command(run, "train")
        if data is not None:
            changed = config.model_copy(update={"sft": config.sft.model_copy(update={"data": os.fspath(data)})})
            changed.remember(config.written_at)
            config = changed
        point = None if run is None else find_resume_point(run)
        saved = None if point is None or point.checkpoint is None else point.checkpoint.path
        parts = resolve_sft(config, self.plugins, self.reporter.activity_started, self.reporter.note, weights=saved)
        if point is not None:
            changes = check_config(parts.config, point.folder.path, self.config.written_at)
            point = replace(point, changed=changes)
        return point, parts

    @contextlib.contextmanager
    def _configured(
        self, agent: Any, workflow: Any, checkpoint: str | Path | None = None
    ) -> Iterator[tuple[Config, Any]]:
        """The config with the agent and the model in it, which all plugins have seen, and the agent if it is no name.

        Within it, an error about a key says where the key was written.
        """
        if agent is not None and workflow is not None:
            raise ConfigError(
                "the agent is named twice, as `agent` and as `workflow`, which mean the same", fix="pass one of them"
            )
        target = workflow if agent is None else agent
        config = self.config
        if target is not None:
            config = config.naming("agent", target if isinstance(target, str) else reference_of(target))
        if checkpoint is not None:
            config = config.naming("model", str(checkpoint))
        with config.naming_sources():
            self.plugins.load()
            for broken in self.plugins.broken:
                self.reporter.warning(f"a plugin takes no part in this run: {broken}")
            self.plugins.hook.agentrl_configure(config=config)
            yield config, None if isinstance(target, str) else target


def _of_another_command(run: Path, verb: str) -> ConfigError:
    return ConfigError(f"the run {run} is not one of this command", fix=f"resume it with agentrl {verb} --resume {run}")
