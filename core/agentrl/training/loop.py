"""The training loop: evaluate, then over and over roll out, learn, and give the engine the new weights.

It knows no agent, reward, backend or algorithm by name. It is synchronous: every token of a batch is
sampled under the weights that the batch then changes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentrl.config.models import Config
from agentrl.errors import RunError
from agentrl.gateway.contract import SessionSettings
from agentrl.learner.learner import Learner
from agentrl.loops import run_in_thread
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.rollout.groups import Batch
from agentrl.rollout.statistics import rollout_metrics
from agentrl.runs.stopwatch import Stopwatch
from agentrl.training.checkpoints import Conversing, save_checkpoint
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.idle import IdleSteps
from agentrl.training.interrupt import finish, finish_in_thread
from agentrl.training.journal import Journal
from agentrl.training.mismatch import MismatchWatch
from agentrl.training.serving import Serving, within
from agentrl.training.sessions import training_session
from agentrl.training.task_order import TaskOrder

__all__ = ["TrainingLoop"]


@dataclass
class TrainingLoop:
    """One run of training. ``run`` may be called once."""

    config: Config
    learner: Learner
    serving: Serving
    evaluator: Evaluator | None
    order: TaskOrder
    journal: Journal
    conversing: Conversing
    """What a checkpoint keeps of how the model is talked to."""
    before: Evaluation | None = None
    """The evaluation of the weights that training started from."""
    latest: Evaluation | None = None
    """The newest evaluation."""
    saved: Path | None = None
    """The newest checkpoint."""
    _watch: Stopwatch = field(default_factory=Stopwatch)
    _saved_version: int = -1
    _writing: threading.Lock = field(default_factory=threading.Lock)
    """Held while the weights change, or are written."""
    _idle: IdleSteps = field(init=False)

    def __post_init__(self) -> None:
        self._idle = IdleSteps(self.config.training.steps)
        self._agreement = MismatchWatch(self.journal.reporter.warning)

    @property
    def current_evaluation(self) -> Evaluation | None:
        """The newest evaluation, if it is one of the weights as they are now."""
        return self.latest if self.latest is not None and self.latest.step == self.learner.version else None

    async def run(self) -> None:
        """Train for ``training.steps`` steps; whatever stops it, ``save`` may be called afterwards."""
        await self._evaluate()
        self.before = self.latest
        while self.learner.version < self.config.training.steps:
            await self._step()
            if self._due(self.config.evaluation.every):
                await self._evaluate()
            if self._due(self.config.training.checkpoint_every):
                await self.save()
        if self.current_evaluation is None:
            await self._evaluate()
        await self.save()

    async def save(self) -> None:
        """Save the weights as a checkpoint, unless they are saved already."""
        if self._saved_version != self.learner.version:
            await finish(self._save())

    def write_checkpoint(self) -> Path:
        """Write the weights as a checkpoint, unless they are written already; may be called from any thread."""
        with self._writing:
            version = self.learner.version
            path = self.journal.folder.checkpoint(version)
            if self._saved_version != version:
                with self.journal.folder.new_checkpoint(version) as folder:
                    save_checkpoint(folder, self.learner, cursor=self.order.cursor, conversing=self.conversing)
                self._saved_version, self.saved = version, path
            return path

    async def _save(self) -> None:
        self.journal.reporter.stage("saving a checkpoint")
        with self._watch.stage("checkpoint"):
            path = await run_in_thread(self.write_checkpoint)
        self.journal.checkpoint(path)

    async def _step(self) -> None:
        step = self.learner.version + 1
        with self._watch.stage("step"):
            groups = await self._roll_out(step)
            self._check_recorded(groups)
            self.journal.batch(groups)
            self.journal.reporter.stage("learning")
            with self._watch.stage("learner"):
                learned = await finish_in_thread(self._learn, groups)
            with self._watch.stage("weights"):
                async with within(self.config.inference.timeout, "the inference engine to take new weights"):
                    await self.serving.backend.update_weights(self.learner.weights())
        metrics = {**rollout_metrics(groups), **learned, **self._watch.take()}
        self.journal.step(step, metrics)
        self._agreement.look(step, learned)
        if learned.get("policy/updated"):
            await self._prove(groups)
        if warning := self._idle.add(step, metrics):
            self.journal.reporter.warning(warning)

    async def _prove(self, groups: Sequence[Group]) -> None:
        """Have the engine show, by a prompt of the step, that it has the newest weights."""
        trees = (episode.tree for group in groups for episode in group.episodes)
        prompt_ids = next(tree.spans[0].ids for tree in trees if tree.spans)
        async with within(self.config.inference.timeout, "the inference engine to complete a prompt"):
            context = self.serving.capabilities.context_length
            await self._agreement.prove(self.serving.backend, self.learner.weights(), prompt_ids, context)

    def _learn(self, groups: Sequence[Group]) -> dict[str, float]:
        with self._writing:
            return self.learner.step(groups)

    async def _roll_out(self, step: int) -> list[Group]:
        rollout = self.config.rollout
        self.journal.reporter.stage("rolling out", episodes=rollout.tasks_per_step * rollout.group_size)
        batch = Batch("train", step, self.order.take(rollout.tasks_per_step), rollout.group_size, self._session)
        with self._watch.stage("rollout"):
            return await self.serving.rollout.run(batch)

    def _session(self, key: EpisodeKey) -> SessionSettings:
        return training_session(self.config, key, self.learner.version)

    async def _evaluate(self) -> None:
        if self.evaluator is None:
            return
        self.journal.reporter.stage("evaluating", episodes=self.evaluator.episodes)
        with self._watch.stage("evaluation"):
            self.latest = await self.evaluator.run(self.learner.version)
        self.journal.evaluation(self.latest)

    def _due(self, every: int) -> bool:
        return every > 0 and self.learner.version % every == 0 and self.learner.version < self.config.training.steps

    def _check_recorded(self, groups: Sequence[Group]) -> None:
        """An agent that talks to another endpoint would seem to run, and never learn."""
        if not any(_recorded(episode) for group in groups for episode in group.episodes):
            raise RunError(
                f"no episode of step {self.learner.version + 1} made a call through its session",
                fix="give the agent's client the `base_url` and `api_key`, or the `http_client`, that `run` is passed",
            )


def _recorded(episode: Episode) -> bool:
    return bool(episode.calls)
