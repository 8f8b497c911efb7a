"""Offline training: a run that trains from the stored episodes of another, and samples nothing.

The groups of each step of the other run are trained in the order in which its steps took them, by any algorithm and
under any reward. Their tokens keep the log-probabilities and the versions that they were sampled under, so the
algorithm's correction for older policies holds for them as in any run: here all weights but the first are others than
those that sampled. The episodes are stored in the new run as they are trained, with the rewards that they have there.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agentrl.algorithms.building import build_algorithm
from agentrl.algorithms.contract import Algorithm
from agentrl.algorithms.soundness import check_command
from agentrl.config.health import HealthRuleModel
from agentrl.config.models import Config
from agentrl.errors import ConfigError
from agentrl.inference.grammars import grammars_of
from agentrl.inference.model_folder import find_model
from agentrl.loops import finish_in_thread
from agentrl.plugins import Plugins
from agentrl.reporting.contract import Reporter
from agentrl.reporting.reporter import Reporters
from agentrl.reporting.trackers import Trackers
from agentrl.rewards.scoring import Scorer, load_reward
from agentrl.rollout.buffer import Taken
from agentrl.rollout.contract import Episode, Group
from agentrl.rollout.dispatcher import SMALLEST_WINDOW, FailureBudget
from agentrl.runs.contract import Membership, Summary
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import RunFolder
from agentrl.runs.reader import Run, open_run
from agentrl.runs.store import EpisodeStore
from agentrl.training.checkpoints import Conversing
from agentrl.training.choices import with_learning_rate
from agentrl.training.columns import Columns
from agentrl.training.course import Course, check_learner, recording
from agentrl.training.interrupts import Interrupts
from agentrl.training.loop import TrainingLoop
from agentrl.training.parts import load_chat
from agentrl.training.plan import planned
from agentrl.training.recorder import RunRecorder
from agentrl.training.replay import OpenGroups
from agentrl.training.rescoring import Rescorer
from agentrl.training.sft import check_vocabulary
from agentrl.training.sources import Sources

if TYPE_CHECKING:
    from agentrl.training.hosting import Hosting

__all__ = ["OfflineParts", "StoredSupply", "resolve_offline", "train_offline"]


@dataclass(frozen=True, slots=True)
class OfflineParts:
    """What a run needs that trains from stored episodes."""

    config: Config
    plugins: Plugins
    algorithm: Algorithm
    sources: Sources
    model_folder: Path
    conversing: Conversing
    source: Run
    """The run whose episodes are trained."""
    steps: Sequence[Membership]
    """What each of its steps took."""
    rescorer: Rescorer | None
    """Scores the episodes again; ``None`` where they keep their rewards."""

    def told(self) -> str:
        """What is going to be trained, in a sentence."""
        groups = sum(len(step.trained) + len(step.left_out) for step in self.steps[: self.config.training.steps])
        scored = "" if self.rescorer is None else ", scored again"
        return f"{self.config.training.steps} steps with {groups} groups of {self.source.path}{scored}"


def resolve_offline(config: Config, plugins: Plugins, reporter: Reporter, *, rescored: bool) -> OfflineParts:
    """Resolve the names of ``config``, whose ``replay.run`` is the run to train from, and start nothing.

    ``rescored`` says whether ``config.reward`` scores the episodes again. Raises ``ConfigError`` for what is wrong, and
    for a run without steps.
    """
    if config.replay.run is None:
        raise ConfigError("nothing says which run to train from", fix="name one: agentrl replay RUN", key="replay.run")
    source = open_run(config.replay.run, runs=config.run.dir)
    steps = EpisodeReader(RunFolder(source.path).episodes).memberships()
    if not steps:
        raise ConfigError(f"the run {source.path} has stored no step to train from", fix="name a run of agentrl train")
    config = _fitted(config, source, len(steps))
    algorithm = build_algorithm(plugins, config.algorithm, updates=config.training.minibatches)
    check_command(algorithm, "replay", "train")
    folder = find_model(plugins, config.model)
    config = with_learning_rate(config, folder)
    check_learner(folder, config, reporter.note)
    chat = load_chat(folder, config.model)
    check_vocabulary(source, config, plugins, chat, "model")
    sources = Sources.of(algorithm, config, plugins, folder)
    config = planned(config, folder, reporter.note, beside=sources.frozen, samples=False)
    scorer = None
    if rescored and config.reward is not None:
        scorer = Scorer(load_reward(plugins, config.reward))
    return OfflineParts(
        config=config,
        plugins=plugins,
        algorithm=algorithm,
        sources=sources,
        model_folder=folder,
        conversing=chat.kept,
        source=source,
        steps=steps,
        rescorer=None if scorer is None else Rescorer(scorer, config.rollout.episode_timeout, config.replay.answer),
    )


def _fitted(config: Config, source: Run, stored: int) -> Config:
    """``config`` with as many steps as are stored, unless the command line wants fewer, and with what follows.

    The weights depart from those that sampled, which is no fault here: the rule that stops a run for it warns, unless
    somebody set it.
    """
    named = {key: place for key, place in config.written_at.items() if not place.startswith("file ")}
    wanted = config.training.steps if "training.steps" in named else stored
    if wanted > stored:
        raise ConfigError(
            f"training.steps={wanted} is more than the {stored} steps that {source.path} has stored",
            fix=f"leave it out, or set it to at most {stored}",
            key="training.steps",
        )
    health = config.health
    if not any(key.startswith("health.mismatch_kl") for key in named) and health.mismatch_kl.action == "stop":
        warns = HealthRuleModel(action="warn", threshold=health.mismatch_kl.threshold)
        health = health.model_copy(update={"mismatch_kl": warns})
    changed = config.model_copy(
        update={
            "training": config.training.model_copy(update={"steps": wanted}),
            "replay": config.replay.model_copy(update={"run": str(source.path)}),
            "run": config.run if "run.name" in named else config.run.model_copy(update={"name": None}),
            "health": health,
        }
    )
    changed.remember(config.written_at)
    return changed


async def train_offline(
    parts: OfflineParts,
    reporter: Reporter,
    interrupts: Interrupts,
    _: None = None,
    hosting: Hosting | None = None,
) -> Summary:
    """Train until the last stored step, one of ``interrupts`` or an error, and return the summary of the new run.

    ``hosting`` are its hosts, where it has any.

    It raises what ``agentrl.training.run.train`` raises.
    """
    told, config = Reporters(reporter), parts.config
    trackers = Trackers.build(parts.plugins, config.trackers, warn=told.warning, patience=config.run.hook_timeout)
    folder = RunFolder.create(config)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(EpisodeStore(folder.episodes))
        recorder = stack.enter_context(recording(folder, store, config, parts.plugins, trackers, told))
        told.note(f"training from {parts.told()}; nothing is evaluated: agentrl eval {folder.path} measures it")
        if parts.rescorer is not None:
            parts.rescorer.scorer.keep_in(folder.path)
            parts.rescorer.scorer.report_to(recorder.meter)
        return await _OfflineCourse(parts, recorder, hosting).to_its_end(interrupts)


class _OfflineCourse(Course):
    def __init__(self, parts: OfflineParts, recorder: RunRecorder, hosting: Hosting | None) -> None:
        super().__init__(recorder, hosting=hosting)
        self._parts = parts

    def going_on(self, summary: Summary) -> str | None:
        return "it is not resumed: start it again, which samples nothing and repeats what it did"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[TrainingLoop]:
        parts, recorder = self._parts, self.recorder
        config = parts.config
        learner = await self.learner(config, parts.plugins, parts.model_folder, parts.algorithm.loss, None)
        columns = await finish_in_thread(
            partial(
                Columns.load,
                parts.algorithm,
                learner,
                parts.sources,
                config,
                run=recorder.folder.path,
                warn=recorder.reporter.warning,
                meter=recorder.meter,
            )
        )
        await recorder.start(config)
        supply = StoredSupply(parts, recorder)
        yield TrainingLoop(
            config=config,
            learner=learner,
            columns=columns,
            serving=None,
            evaluator=None,
            supply=lambda _: supply,
            recorder=recorder,
            conversing=parts.conversing,
            grammars=grammars_of(parts.model_folder),
            elapsed=self.elapsed,
        )


@dataclass
class StoredSupply:
    """Hands each step the groups that the same step of another run took."""

    parts: OfflineParts
    recorder: RunRecorder
    _taken: int = 0
    """How many steps have been handed out."""
    _changed: float = field(default=0.0)
    """Episodes of the newest step whose reward is another than it was."""
    _budget: FailureBudget = field(init=False)
    """How many episodes the reward may fail of those that it scores again."""

    def __post_init__(self) -> None:
        rollout = self.parts.config.rollout
        window = max(SMALLEST_WINDOW, rollout.tasks_per_step * rollout.group_size)
        self._budget = FailureBudget(rollout.failure_budget, window)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to end."""

    @property
    def cursor(self) -> int:
        """One more than the highest ordinal that a step has taken."""
        taken = self.parts.steps[: self._taken]
        return max((ordinal for step in taken for ordinal in (*step.trained, *step.left_out)), default=-1) + 1

    def take_up(self, begun: OpenGroups, version: int) -> None:
        """Raise ``ConfigError``: such a run is started again instead of being resumed."""
        raise ConfigError("a run that trains from stored episodes is not resumed", fix="start it again")

    async def take(self) -> Taken:
        """The groups of the next step, stored in the run with the rewards that they have in it."""
        step = self.parts.steps[self._taken]
        self._taken += 1
        self._changed = 0.0
        found = [await self._group(ordinal) for ordinal in sorted((*step.trained, *step.left_out))]
        groups = tuple(group for group in found if group is not None)
        if self.parts.rescorer is not None:
            episodes = [episode for group in groups for episode in group.episodes]
            self._budget.conclude(len(episodes), sum(map(_is_unscored, episodes)))
        return Taken(groups)

    def served(self, version: int) -> None:
        """There is no engine."""

    def pause(self) -> None:
        """Nothing starts by itself."""

    def resume(self) -> None:
        """Nothing was held back."""

    async def at_rest(self) -> None:
        """Nothing is in flight."""

    def counts(self) -> dict[str, float]:
        """How many episodes of the newest step have another reward than they had."""
        return {} if self.parts.rescorer is None else {"replay/changed": self._changed}

    async def _group(self, ordinal: int) -> Group | None:
        source = self.parts.source
        loaded = await finish_in_thread(lambda: list(source.load_episodes(phase="train", group=ordinal)))
        taken = [episode for episode in loaded if episode.trained_step == self._taken] or loaded
        episodes = sorted(taken, key=lambda episode: episode.key.sample)
        if not episodes:
            return None
        if self.parts.rescorer is not None:
            rescored = await self.parts.rescorer.group(episodes)
            self._changed += sum(each.changed for each in rescored)
            # An episode that has nothing to score keeps what it had: its agent's reward, or that of a limit.
            episodes = [each.episode for each in rescored]
        kept = [replace(episode, trained_step=None) for episode in episodes]
        for episode in kept:
            await self._store(episode)
            if self.parts.rescorer is not None and (episode.outcome == "rewarded" or _is_unscored(episode)):
                self._budget.add(episode.key, episode.failure)
        return Group(kept[0].key.task, tuple(kept))

    async def _store(self, episode: Episode) -> None:
        self.recorder.episode_started(episode.key)
        await self.recorder.episode(episode)


def _is_unscored(episode: Episode) -> bool:
    """Whether the reward failed."""
    return episode.failure is not None and episode.failure.side == "reward"
