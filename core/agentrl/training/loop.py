"""The training loop: evaluate, then over and over roll out, learn, and give the engine the new weights.

It knows no agent, reward, backend or algorithm by name. It is synchronous: every token of a batch is
sampled under the weights that the batch then changes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentrl.algorithms.batch import build_batch, wholly_excluded
from agentrl.algorithms.contract import Algorithm
from agentrl.config.models import Config
from agentrl.errors import RunError
from agentrl.gateway.contract import SessionSettings
from agentrl.inference.grammars import Grammars
from agentrl.learner.learner import Learner
from agentrl.loops import finish, finish_in_thread, run_in_thread
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.rollout.dispatcher import GroupRequest
from agentrl.rollout.staleness import StalenessBound
from agentrl.runs.tally import rollout_metrics
from agentrl.training.backends import within
from agentrl.training.checkpoints import Conversing, save_checkpoint
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.idle import IdleSteps
from agentrl.training.mismatch import MismatchWatch
from agentrl.training.recorder import RunRecorder
from agentrl.training.serving import Serving
from agentrl.training.task_order import OrderedTask, TaskOrder

__all__ = ["Stopwatch", "TrainingLoop", "group_requests", "training_session"]


class Stopwatch:
    """Adds up the wall-clock seconds of named parts of a step between two readings.

    For one thread. Parts may nest, and each counts in full.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``seconds/NAME``, also where it raises."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    def take(self) -> dict[str, float]:
        """The seconds since the last reading, as metrics: ``{"seconds/rollout": 1.2, …}``."""
        taken = {f"seconds/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return taken


@dataclass
class TrainingLoop:
    """One run of training. ``run`` may be called once."""

    config: Config
    learner: Learner
    algorithm: Algorithm
    serving: Serving
    evaluator: Evaluator | None
    order: TaskOrder
    recorder: RunRecorder
    conversing: Conversing
    """What a checkpoint keeps of how the model is talked to."""
    grammars: Grammars | None = None
    """Those of the model, for tokens that were sampled under one; ``None`` leaves all of these out of the loss."""
    before: Evaluation | None = None
    """The evaluation of the weights that training started from."""
    latest: Evaluation | None = None
    """The newest evaluation."""
    saved: Path | None = None
    """The newest checkpoint."""
    _stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _saved_version: int = -1
    _writing: threading.Lock = field(default_factory=threading.Lock)
    """Held while the weights change, or are written."""
    _idle: IdleSteps = field(init=False)

    def __post_init__(self) -> None:
        self._idle = IdleSteps(self.config.training.steps)
        self._agreement = MismatchWatch(self.recorder.reporter.warning)

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
            path = self.recorder.folder.checkpoint(version)
            if self._saved_version != version:
                with self.recorder.folder.new_checkpoint(version) as folder:
                    save_checkpoint(folder, self.learner, cursor=self.order.cursor, conversing=self.conversing)
                self._saved_version, self.saved = version, path
            return path

    async def _save(self) -> None:
        self.recorder.reporter.activity_started("saving a checkpoint")
        with self._stopwatch.time("checkpoint"):
            path = await run_in_thread(self.write_checkpoint)
        self.recorder.checkpoint(path)

    async def _step(self) -> None:
        step = self.learner.version + 1
        with self._stopwatch.time("step"):
            groups = await self._roll_out()
            self._check_recorded(groups)
            self.recorder.batch(groups)
            self.recorder.reporter.activity_started("learning")
            with self._stopwatch.time("learner"):
                learned = await finish_in_thread(self._learn, groups)
            with self._stopwatch.time("weights"):
                async with within(self.config.inference.timeout, "the inference engine to take new weights"):
                    with self.learner.lend("the inference engine") as weights:
                        await self.serving.backend.update_weights(weights)
            await self.recorder.trained(groups, step)
        metrics = {**rollout_metrics(groups), **learned, **self._stopwatch.take()}
        self.recorder.step(step, metrics)
        self._agreement.look(step, learned)
        if learned.get("policy/updated"):
            await self._prove(groups)
        first = step == 1 and self.config.rollout.constrained == "exclude"
        for warning in (self._idle.add(step, metrics), _mostly_excluded(metrics) if first else None):
            if warning:
                self.recorder.reporter.warning(warning)

    async def _prove(self, groups: Sequence[Group]) -> None:
        """Have the engine show, by a prompt of the step, that it has the newest weights."""
        trees = (episode.tree for group in groups for episode in group.episodes)
        prompt_ids = next(tree.spans[0].ids for tree in trees if tree.spans)
        async with within(self.config.inference.timeout, "the inference engine to complete a prompt"):
            context = self.serving.capabilities.context_length
            with self.learner.lend("the proof of the engine's weights") as weights:
                await self._agreement.prove(self.serving.backend, weights, prompt_ids, context)

    def _learn(self, groups: Sequence[Group]) -> dict[str, float]:
        choices = self.config.rollout.constrained == "train"
        if self.learner.version == 0:
            _check_trained(wholly_excluded(groups, allowed=self.grammars, choices=choices), choices)
        batch, account = build_batch(groups, self.algorithm, allowed=self.grammars, choices=choices)
        with self._writing:
            return {**account.counts, **self.learner.step(batch)}

    async def _roll_out(self) -> list[Group]:
        rollout = self.config.rollout
        self.recorder.reporter.activity_started("rolling out", episodes=rollout.tasks_per_step * rollout.group_size)
        requests = group_requests(self.config, self.order.take(rollout.tasks_per_step), self.learner.version)
        with self._stopwatch.time("rollout"):
            return await self.serving.dispatcher.collect(requests)

    async def _evaluate(self) -> None:
        if self.evaluator is None:
            return
        self.recorder.reporter.activity_started("evaluating", episodes=self.evaluator.episodes)
        with self._stopwatch.time("evaluation"):
            self.latest = await self.evaluator.run(self.learner.version)
        self.recorder.evaluation(self.latest)

    def _due(self, every: int) -> bool:
        return every > 0 and self.learner.version % every == 0 and self.learner.version < self.config.training.steps

    def _check_recorded(self, groups: Sequence[Group]) -> None:
        """An agent that talks to another endpoint would seem to run, and never learn."""
        if not any(episode.calls for group in groups for episode in group.episodes):
            raise RunError(
                f"no episode of step {self.learner.version + 1} made a call through its session",
                fix="give the agent's client the `base_url` and `api_key`, or the `http_client`, that `run` is passed",
            )


def _check_trained(episode: Episode | None, choices: bool) -> None:
    """Raise ``RunError`` for an ``episode`` of which grammars leave no token to train."""
    if episode is None:
        return
    free = "free the policy with rollout.override: {response_format: null, tool_choice: null, strict: false}"
    train = "set rollout.constrained=train, which trains tokens where a grammar left a choice; or "
    raise RunError(
        f"nothing of episode {episode.key} can be trained: every token of it was constrained by a grammar"
        + (" that left no choice" if choices else ", and rollout.constrained=exclude leaves those out of the loss"),
        fix=free if choices else train + free,
    )


def _mostly_excluded(metrics: Mapping[str, float]) -> str | None:
    """A warning where grammars leave little to train, such as nothing but the beginnings of tool calls."""
    excluded, trained = metrics["tokens/excluded"], metrics["tokens/trained"]
    if not trained or excluded <= trained:
        return None
    return (
        f"{excluded:.0f} of {excluded + trained:.0f} tokens are left out of the loss because a grammar constrained "
        "them (set rollout.constrained=train to train those where it left a choice, or give the policy its freedom "
        "with rollout.override, such as {strict: false} for tools)"
    )


def group_requests(config: Config, tasks: list[OrderedTask], version: int) -> list[GroupRequest]:
    """The groups of one step: ``rollout.group_size`` episodes of each task, under weights of ``version``.

    Where a small set repeats a task within the step, its sample numbers go on, so that no two episodes of the step
    sample the same tokens.
    """
    size = config.rollout.group_size
    taken: Counter[int] = Counter()
    requests = []
    for task in tasks:
        samples = range(taken[task.index], taken[task.index] + size)
        taken[task.index] += size
        requests.append(
            GroupRequest(
                phase="train",
                ordinal=task.position,
                task=task.index,
                data=task.data,
                samples=samples,
                settings=lambda key: training_session(config, key, version),
            )
        )
    return requests


def training_session(config: Config, key: EpisodeKey, version: int) -> SessionSettings:
    """How the session of the training episode ``key`` samples under weights of ``version``."""
    rollout = config.rollout
    newest = StalenessBound(0, rollout.tasks_per_step).deadline(version)
    return SessionSettings(
        training=True,
        model=config.model.name,
        temperature=rollout.temperature,
        max_tokens=rollout.max_tokens,
        override=rollout.override,
        versions=(version, newest),
        seed_key=(config.seed, key.phase, version, key.task, key.sample),
    )
