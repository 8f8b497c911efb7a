"""The training loop: evaluate, then over and over take groups, learn, and give the engine the new weights.

It knows no agent, reward, backend or algorithm by name. Groups roll out beside it as far as ``rollout.max_staleness``
lets them; at 0 none starts before the step before is over, and every token of a batch is sampled under the weights that
the batch then changes. A step, on one page::

    take the step's groups             waits for those that have to be trained now
    write down which they are          so that the step can be repeated from the store
    learn from them, in a thread       episodes go on under the weights that the engine has; one that shares the
                                       learner's device sleeps meanwhile
    lend the weights to the engine     requests pause between two tokens, and go on under the new ones; where it shares
                                       the learner's own, they have paused for the optimiser's update
    have it prove that it has them     by a digest of every tensor, and by recorded tokens
    free the slots of the groups       others start
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from agentrl.algorithms.batch import fates_left_out, wholly_excluded
from agentrl.config.models import Config
from agentrl.errors import RunError
from agentrl.health.findings import ROLLED_BACK, Finding, Health
from agentrl.inference.grammars import Grammars
from agentrl.learner.contract import Trainable
from agentrl.rollout.buffer import Taken
from agentrl.rollout.contract import Group
from agentrl.runs.contract import Checkpoint, Membership
from agentrl.runs.ledger import step_ledger
from agentrl.runs.reader import Run
from agentrl.runs.tally import rollout_metrics
from agentrl.training.backends import sleeper
from agentrl.training.checkpointer import Checkpointer
from agentrl.training.checkpoints import Conversing
from agentrl.training.columns import Columns
from agentrl.training.deadlines import finish_within
from agentrl.training.engine_weights import EngineWeights, Lender, NoEngine
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.evaluations import Evaluations
from agentrl.training.mismatch import MismatchWatch
from agentrl.training.recorder import RunRecorder
from agentrl.training.replay import Lineage, Resumed
from agentrl.training.serving import EngineServing
from agentrl.training.sharing import WeightSharing
from agentrl.training.stopwatch import Stopwatch
from agentrl.training.supply import Supply
from agentrl.training.trained import trained_rows
from agentrl.training.untrained import mostly_excluded, refuse_untrainable, too_long

__all__ = ["TrainingLoop"]


@dataclass
class TrainingLoop:
    """One run of training. ``run`` may be called once."""

    config: Config
    learner: Trainable
    columns: Columns
    """Makes the batch of a step."""
    serving: EngineServing | None
    """``None`` where nothing is sampled, since the groups are stored ones."""
    evaluator: Evaluator | None
    supply: Callable[[Stopwatch], Supply]
    """Makes what hands each step its groups. The stopwatch measures the run's stages."""
    recorder: RunRecorder
    conversing: Conversing
    """What a checkpoint keeps of how the model is talked to."""
    grammars: Grammars | None = None
    """Those of the model, for tokens that were sampled under one; ``None`` leaves all of these out of the loss."""
    sharing: WeightSharing = field(default_factory=WeightSharing)
    """Whether the engine computes with the learner's own weights."""
    resumed: Resumed | None = None
    """What a run that is resumed has to go on with."""
    elapsed: Callable[[], float] = lambda: 0.0
    """Tells how many seconds the run has taken."""
    lender: Lender = field(default_factory=Lender)
    """Is told when weights change."""
    evaluations: Evaluations = field(init=False)
    checkpointer: Checkpointer = field(init=False)
    _learned: _Learned | None = None
    """The step that made the weights, until its metrics are written."""
    _going_back: bool = False
    """Whether the weights are given up for those of a better checkpoint, and are not to be saved."""
    _told_too_long: bool = False
    """Whether a warning has told of an episode that is longer than a pass."""

    def __post_init__(self) -> None:
        config, recorder = self.config, self.recorder
        warn = recorder.reporter.warning
        self._stopwatch = Stopwatch()
        self._supply = self.supply(self._stopwatch)
        self._weights: EngineWeights | NoEngine = NoEngine()
        if self.serving is not None:
            self._weights = EngineWeights(
                self.learner, self.serving.backend, config.inference.timeout, warn, recorder.meter
            )
        self._turn: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext
        """Has the engine sleep while the learner computes, where they share a device."""
        if self.serving is not None and (engine := sleeper(self.serving.backend)) is not None:
            from agentrl.training.turns import Turns

            self._turn = Turns(self.learner, engine, config.inference.timeout, self._stopwatch).learning
        self._agreement = MismatchWatch(warn)
        self._run = Run(recorder.folder.path)
        self._health = Health(config.health, config.training.steps, config.rollout.max_staleness)
        self._health.recall(line for line in self._run.metrics() if line.step <= self.learner.version)
        self.evaluations = Evaluations(
            self.evaluator, lambda: self.learner.version, self._evaluated, recorder.reporter, self._stopwatch
        )
        self.checkpointer = Checkpointer(
            self.learner,
            config.training,
            recorder,
            self.conversing,
            self.elapsed,
            self._stopwatch,
            None if self.resumed is None else self.resumed.checkpoint,
        )
        self.checkpointer.cursor = self._supply.cursor

    async def run(self) -> None:
        """Train for ``training.steps`` steps; whatever stops it, ``save`` may be called afterwards."""
        if self.resumed is None:
            if self.learner.merges_at_start:  # Engine and learner may be on devices that round otherwise.
                await self._weights.serve()
            await self.evaluations.run()
        else:
            await self._go_on(self.resumed)
        try:
            async with self._supply:
                while self.learner.version < self.config.training.steps:
                    await self._step()
                    if self._due(self.config.training.checkpoint_every):
                        await self.checkpointer.save()
                await self.evaluations.finished()
        finally:
            await self.evaluations.stop()
        if self.evaluations.current is None:
            await self.evaluations.run()
        for finding in self._health.end():
            self.recorder.reporter.warning(str(finding))
        await self.checkpointer.save()

    async def _go_on(self, resumed: Resumed) -> None:
        """Come from the checkpoint of a resumed run to where the run was, without a rollout."""
        self.evaluations.recall(resumed.lines)
        if self.learner.version in (0, *(line.step for line in resumed.lines if not line.is_evaluation)):
            await self._evaluate_if_missing()
        for step, taken in resumed.replay.steps():
            resumed.replay.check_next(step, self.learner.version)
            await self._repeat(taken, resumed.lineage)
        begun = resumed.replay.open_groups()
        resumed.lineage.add(each for episodes in begun.episodes.values() for each in episodes)
        self._supply.take_up(begun, self.learner.version)
        self.checkpointer.cursor = self._supply.cursor
        await self._weights.serve()
        await self._weights.prove()

    async def _repeat(self, taken: Taken, lineage: Lineage) -> None:
        """Make a step again of what it took."""
        lineage.add(each for group in taken.groups for each in group.episodes)
        with self._stopwatch.time("step"):
            async with self.lender.changing():
                learned = await self._learn_from(taken)
        if lineage.is_lost_by(self.learner.version, learned):
            self.recorder.reporter.warning(
                f"step {self.learner.version}, repeated, made other weights than before the run ended: what those had "
                "sampled is trained with the log-probabilities that it was sampled under, and counted as "
                "tokens/lost_lineage"
            )
        judged = self._judge(lineage.proven(self.learner.version))
        if judged.better is not None and self._replays(judged.step + 1):
            # Going back would skip groups that the run has trained since.
            self.recorder.reporter.warning(
                f"a rule of learning health would go back at step {judged.step}, which the run had not done: "
                "it goes on as it did then"
            )
            judged = judged._replace(better=None)
        self._write(judged)
        if judged.stop is not None:
            raise judged.stop
        if judged.better is not None:
            await self._go_back(judged.better)
            await self.checkpointer.save()
            return
        await self._evaluate_if_missing()
        if self._due(self.config.training.checkpoint_every):
            await self.checkpointer.save()

    async def _evaluate_if_missing(self) -> None:
        """Evaluate the weights of a resumed run where they were to be evaluated and were not, or not to the end."""
        is_due = self.learner.version == 0 or self._due(self.config.evaluation.every)
        if self.evaluations and is_due and self.evaluations.current is None:
            await self._weights.serve()
            await self._weights.prove()
            await self.evaluations.run()

    def _replays(self, step: int) -> bool:
        return self.resumed is not None and self.resumed.replay.has(step)

    @property
    def stopwatch(self) -> Stopwatch:
        """Has the seconds that no line of metrics tells yet."""
        return self._stopwatch

    def results(self) -> dict[str, Any]:
        """What the run's summary says of its learning."""
        before, after = self.evaluations.before, self.evaluations.current
        return {
            "reward_before": None if before is None else before.sampled,
            "reward_after": None if after is None else after.sampled,
            "reward_before_greedy": None if before is None else before.greedy,
            "reward_after_greedy": None if after is None else after.greedy,
            "ledger": self.recorder.ledger.to_json(),
        }

    def write_step(self) -> bool:
        """Write the metrics of a step that was interrupted after it had made new weights; else do nothing.

        Returns whether the weights may be saved. They may not where a rule of learning health demands something of the
        step: a resumed run repeats it, and does what is demanded. No weights change meanwhile.
        """
        if self.learner.version == 0 or self._going_back:
            return False
        if self._learned is None:
            return True
        judged = self._judge({})
        if judged.stop is not None or judged.better is not None:
            return False
        self._write(judged)
        return True

    async def _step(self) -> None:
        step = self.learner.version + 1
        with self._stopwatch.time("step"):
            taken = await self._taken()
            groups = taken.groups
            self._check_recorded(groups)
            await self.recorder.begin_step(_membership(step, taken), groups)
            await self._weights.record(groups)
            if self.sharing.follows:
                await self.evaluations.finished()  # The engine's weights change in the learner's step.
            async with self.lender.changing():
                learned = await self._learn_from(taken)
                await self.evaluations.finished()  # No weights may change before.
                with self._stopwatch.time("weights"):
                    came = await self._weights.serve()
            proven = came | await self._weights.prove()
        judged = self._judge(proven)
        self._write(judged)
        is_own = self.serving is not None and not self._lost_tokens(groups)
        if is_own and not learned.get("staleness/max"):
            self._agreement.look(step, learned)  # Tokens of other weights differ from those of the newest.
        stop, better = judged.stop, judged.better
        if better is not None:
            await self._go_back(better)
        elif stop is None and self._due(self.config.evaluation.every):
            await self._evaluate()
        self._supply.served(self.learner.version)
        self.checkpointer.cursor = self._supply.cursor
        if stop is not None:
            raise stop
        if better is not None:
            await self.checkpointer.save()

    async def _learn_from(self, taken: Taken) -> dict[str, float]:
        """Make new weights of the groups of a step; returns the learner's metrics."""
        self.recorder.batch(taken.groups)
        self.recorder.reporter.activity_started("learning")
        what = f"the learner to take step {self.learner.version + 1}"
        async with self._turn():
            with self._stopwatch.time("learner"):
                return await finish_within(self.config.training.timeout, what, self._learn, taken)

    def _judge(self, proven: Mapping[str, float]) -> _Judged:
        """The metrics of the step that made the weights, and what the rules of learning health say of them."""
        learned = self._learned
        assert learned is not None
        step, taken, of_learner = learned
        counted = {**rollout_metrics((*taken.groups, *taken.left_out)), **self._supply.counts()}
        metrics = {**counted, **of_learner, **proven}
        metrics |= self._stopwatch.take() | self.sharing.take()
        if lost := self._lost_tokens(taken.groups):
            metrics["tokens/lost_lineage"] = lost
        findings = self._health.step(step, metrics)
        return _Judged(step, taken, metrics, findings, *self._heed(findings))

    def _write(self, judged: _Judged) -> None:
        step, taken, metrics, findings, stop, better = judged
        row = metrics if better is None else {**metrics, ROLLED_BACK: better.step}
        self.recorder.step(step, row, written=self._forget)
        said = findings if stop is None else [each for each in findings if each.action == "warn"]
        self._warn(step, metrics, said, taken.groups)

    def _forget(self) -> None:
        """The step that made the weights has its metrics on disk."""
        self._learned = None

    def _lost_tokens(self, groups: Sequence[Group]) -> int:
        return 0 if self.resumed is None else self.resumed.lineage.lost_tokens(groups)

    def _warn(self, step: int, metrics: Mapping[str, float], findings: list[Finding], groups: Sequence[Group]) -> None:
        warnings = [str(finding) for finding in findings]
        if not self._told_too_long and (over := too_long(step, groups, self.config)):
            self._told_too_long = True
            warnings.append(over)
        if step == 1 and self.config.rollout.constrained == "exclude" and (excluded := mostly_excluded(metrics)):
            warnings.append(excluded)
        for warning in warnings:
            self.recorder.reporter.warning(warning)

    def _heed(self, findings: list[Finding]) -> tuple[RunError | None, Checkpoint | None]:
        """What ``findings`` demand: the error that ends the run, or the checkpoint to go back to."""
        for finding in findings:
            if finding.action == "stop":
                return RunError(f"health: {finding.rule}: {finding.said}", fix=finding.fix), None
        back = next((finding for finding in findings if finding.action == "rollback"), None)
        if back is None:
            return None, None
        done = sum(ROLLED_BACK in line.metrics for line in self._run.metrics())
        best = self._run.best_checkpoint()
        if best is not None and done < self.config.health.most_rollbacks:
            return None, best
        why = (
            f"the run has gone back {done} times already" if best else "no checkpoint has been evaluated to go back to"
        )
        return RunError(f"health: {back.rule}: {back.said}; {why}", fix=back.fix), None

    async def _go_back(self, best: Checkpoint) -> None:
        """Go on from the weights of ``best``, under the next version number.

        What is in flight is waited for: its tokens are of the weights that are given up, and stay within the bound of
        staleness or count as stale.
        """
        self._going_back = True
        self._supply.pause()
        await self._supply.at_rest()
        version = self.learner.version + 1
        self.recorder.reporter.warning(
            f"going back to {best.path.name}, the best checkpoint by evaluation; its weights go on as version {version}"
        )
        timeout = self.config.training.timeout
        async with self.lender.changing():
            async with self._turn():
                await finish_within(timeout, f"the learner to load {best.path}", self._restore, best.path, version)
            await self._weights.serve()
        await self._weights.prove()
        self._health.back_to(best.step)
        self._supply.resume()

    def _restore(self, folder: Path, version: int) -> None:
        with self.checkpointer.weights_change():
            self.learner.go_back(folder, version)
            self._going_back = False

    async def _taken(self) -> Taken:
        """The groups of the next step, once they are there."""
        rollout = self.config.rollout
        activity = "serving sessions" if self.config.is_online else "rolling out"
        activity = "reading stored episodes" if self.serving is None else activity
        self.recorder.reporter.activity_started(activity, episodes=rollout.tasks_per_step * rollout.group_size)
        with self._stopwatch.time("rollout"):
            return await self._supply.take()

    def _learn(self, taken: Taken) -> dict[str, float]:
        rollout, version, groups = self.config.rollout, self.learner.version, taken.groups
        choices = rollout.constrained == "train"
        if version == 0 and not self.config.is_online:  # People may ask for any form.
            refuse_untrainable(wholly_excluded(groups, allowed=self.grammars, choices=choices), choices)
        prepared = self.columns.prepare(
            groups,
            allowed=self.grammars,
            choices=choices,
            oldest=version - rollout.max_staleness if rollout.on_stale == "mask" else None,
            longest=self.config.training.pass_tokens,
            updates=self.config.training.minibatches,
        )
        batch, account, groups, scored = prepared
        left_out = [(group, fates_left_out(group, self.columns.algorithm)) for group in taken.left_out]
        ledger = step_ledger(groups, account.fates, left_out=left_out, stale=taken.stale)
        with self.checkpointer.weights_change():
            metrics, terms = self.learner.step(batch)
            step, learned = self.learner.version, {**account.counts, **ledger.metrics(), **scored, **metrics}
            # Here, because whoever waits for this may be interrupted meanwhile.
            self._learned = _Learned(step, taken, learned)
            self.recorder.trained(step, trained_rows(step, prepared, terms, left_out=left_out, stale=taken.stale))
        return learned

    async def _evaluate(self) -> None:
        """Evaluate the weights: alone, or beside episodes of training where ``evaluation.overlap`` says so."""
        if self.config.evaluation.overlap:
            self.evaluations.begin()
        elif self.evaluations:
            self._supply.pause()
            with self._stopwatch.time("evaluation"):
                await self._supply.at_rest()
            await self.evaluations.run()
            self._supply.resume()

    def _evaluated(self, evaluation: Evaluation) -> None:
        self._health.evaluation(evaluation.step, evaluation.metrics())
        self.recorder.evaluation(evaluation, self._stopwatch.take("evaluation"))

    def _due(self, every: int) -> bool:
        return every > 0 and self.learner.version % every == 0 and self.learner.version < self.config.training.steps

    def _check_recorded(self, groups: Sequence[Group]) -> None:
        """An agent that talks to another endpoint would seem to run, and never learn."""
        # A first prompt that is too long for the context is refused, which is a call all the same.
        episodes = [episode for group in groups for episode in group.episodes]
        if not any(episode.calls or episode.limit == "context" for episode in episodes):
            raise RunError(
                f"no episode of step {self.learner.version + 1} made a call through its session",
                fix="give the agent's client the `base_url` and `api_key`, or the `http_client`, that `run` is passed",
            )


class _Learned(NamedTuple):
    """A step that has made new weights."""

    step: int
    taken: Taken
    metrics: dict[str, float]
    """The learner's."""


class _Judged(NamedTuple):
    """A step with all its metrics, and what it demands."""

    step: int
    taken: Taken
    metrics: dict[str, float]
    findings: list[Finding]
    stop: RunError | None
    """The error that ends the run."""
    better: Checkpoint | None
    """The checkpoint to go back to."""


def _membership(step: int, taken: Taken) -> Membership:
    trained, left_out, stale = (
        tuple(group.ordinal for group in groups) for groups in (taken.groups, taken.left_out, taken.stale)
    )
    return Membership(step, trained, left_out, stale)
