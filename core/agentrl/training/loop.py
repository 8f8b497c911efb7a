"""The training loop: evaluate, then over and over take groups, learn, and give the engine the new weights.

It knows no agent, reward, backend or algorithm by name. Groups roll out beside it as far as ``rollout.max_staleness``
lets them; at 0 none starts before the step before is over, and every token of a batch is sampled under the weights that
the batch then changes. A step, on one page::

    take the step's groups             waits for those that have to be trained now
    write down which they are          so that the step can be repeated from the store
    learn from them, in a thread       episodes go on under the weights that the engine has
    lend the weights to the engine     requests pause between two tokens, and go on under the new ones
    have it prove that it has them     by a digest of every tensor, and by recorded tokens
    free the slots of the groups       others start
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from agentrl.algorithms.batch import build_batch, wholly_excluded
from agentrl.algorithms.contract import Algorithm
from agentrl.config.models import Config
from agentrl.errors import RunError
from agentrl.inference.contract import Weights
from agentrl.inference.grammars import Grammars
from agentrl.learner.learner import Learner
from agentrl.loops import finish, finish_in_thread
from agentrl.rollout.buffer import Taken
from agentrl.rollout.contract import Episode, Group
from agentrl.runs.contract import Checkpoint, Membership
from agentrl.runs.ledger import step_ledger
from agentrl.runs.reader import Run
from agentrl.runs.tally import rollout_metrics
from agentrl.training.checkpoints import Conversing, save_checkpoint, superseded
from agentrl.training.deadlines import within
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.health import ROLLED_BACK, Finding, Health
from agentrl.training.mismatch import MismatchWatch
from agentrl.training.proof import Recorded, UpdateProof
from agentrl.training.recorder import RunRecorder
from agentrl.training.replay import Lineage, Resumed
from agentrl.training.serving import EngineServing
from agentrl.training.stopwatch import Stopwatch
from agentrl.training.supply import Supply

__all__ = ["TrainingLoop"]

Result = TypeVar("Result")


@dataclass
class TrainingLoop:
    """One run of training. ``run`` may be called once."""

    config: Config
    learner: Learner
    algorithm: Algorithm
    serving: EngineServing
    evaluator: Evaluator | None
    supply: Callable[[Stopwatch], Supply]
    """Makes what hands each step its groups. The stopwatch measures the run's stages."""
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
    resumed: Resumed | None = None
    """What a run that is resumed has to go on with."""
    elapsed: Callable[[], float] = lambda: 0.0
    """Tells how many seconds the run has taken."""
    _stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _cursor: int = field(init=False)
    """The position in the task order from which the weights as they are now go on."""
    _recorded: Recorded | None = None
    """A call of the newest step, for the proofs of updates."""
    _saved_version: int = -1
    _writing: threading.Lock = field(default_factory=threading.Lock)
    """Held while the weights change, or are written."""
    _supply: Supply = field(init=False)
    _waiting: str = field(init=False)
    """What the run does while a step waits for its groups."""
    _checks_first: bool = field(init=False)
    """Whether a first step that constrains everything says that the agent never samples freely."""
    _evaluating: asyncio.Task[Evaluation] | None = None
    """An evaluation that episodes of training run beside."""
    _learned: _Learned | None = None
    """The step that made the weights, until its metrics are written."""
    _health: Health = field(init=False)
    _told_too_long: bool = False
    """Whether a warning has told of an episode that is longer than a pass."""

    def __post_init__(self) -> None:
        self._supply = self.supply(self._stopwatch)
        self._checks_first = not self.config.is_online
        self._waiting = "rolling out" if self._checks_first else "serving sessions"
        self._cursor = self._supply.cursor
        self._agreement = MismatchWatch(self.recorder.reporter.warning)
        self._proof = UpdateProof(self.recorder.reporter.warning)
        self._run = Run(self.recorder.folder.path)
        self._health = Health(self.config.health, self.config.training.steps, self.config.rollout.max_staleness)
        self._health.recall(line for line in self._run.metrics() if line.step <= self.learner.version)

    @property
    def current_evaluation(self) -> Evaluation | None:
        """The newest evaluation, if it is one of the weights as they are now."""
        return self.latest if self.latest is not None and self.latest.step == self.learner.version else None

    async def run(self) -> None:
        """Train for ``training.steps`` steps; whatever stops it, ``save`` may be called afterwards."""
        if self.resumed is None:
            await self._evaluate()
            self.before = self.latest
        else:
            await self._go_on(self.resumed)
        try:
            async with self._supply:
                while self.learner.version < self.config.training.steps:
                    await self._step()
                    if self._due(self.config.training.checkpoint_every):
                        await self.save()
                await self._evaluated()
        finally:
            await self._stop_evaluating()
        if self.current_evaluation is None:
            await self._evaluate()
        for finding in self._health.end():
            self.recorder.reporter.warning(str(finding))
        await self.save()

    async def _go_on(self, resumed: Resumed) -> None:
        """Come from the checkpoint of a resumed run to where the run was, without a rollout."""
        self._saved_version, self.saved = resumed.replay.version, resumed.checkpoint
        evaluations = [Evaluation.of_metrics(line.step, line.metrics) for line in resumed.lines if line.is_evaluation]
        self.before, self.latest = (evaluations[0], evaluations[-1]) if evaluations else (None, None)
        if self.learner.version in (0, *(line.step for line in resumed.lines if not line.is_evaluation)):
            await self._evaluate_if_missing()
        self.before = self.before or self.latest
        for step, taken in resumed.replay.steps():
            resumed.replay.check_next(step, self.learner.version)
            await self._repeat(taken, resumed.lineage)
        begun = resumed.replay.open_groups()
        resumed.lineage.add(each for episodes in begun.episodes.values() for each in episodes)
        self._supply.take_up(begun, self.learner.version)
        self._cursor = self._supply.cursor
        await self._serve_weights()
        await self._prove()

    async def _repeat(self, taken: Taken, lineage: Lineage) -> None:
        """Make a step again of what it took."""
        lineage.add(each for group in taken.groups for each in group.episodes)
        with self._stopwatch.time("step"):
            learned = await self._learn_from(taken)
        if lineage.is_lost_by(self.learner.version, learned):
            self.recorder.reporter.warning(
                f"step {self.learner.version}, repeated, made other weights than before the run ended: what those had "
                "sampled is trained with the log-probabilities that it was sampled under, and counted as "
                "tokens/lost_lineage"
            )
        judged = self._judge(lineage.proven(self.learner.version))
        self._write(judged)
        if judged.stop is not None:
            raise judged.stop
        if judged.better is not None:
            await self._go_back(judged.better)
            await self.save()
            return
        await self._evaluate_if_missing()
        if self._due(self.config.training.checkpoint_every):
            await self.save()

    async def _evaluate_if_missing(self) -> None:
        """Evaluate the weights of a resumed run where they were to be evaluated and were not, or not to the end."""
        is_due = self.learner.version == 0 or self._due(self.config.evaluation.every)
        if self.evaluator is not None and is_due and self.current_evaluation is None:
            await self._serve_weights()
            await self._prove()
            await self._evaluate()

    def write_step(self) -> bool:
        """Write the metrics of a step that was interrupted after it had made new weights; else do nothing.

        Returns whether the weights may be saved. They may not where a rule of learning health demands something of the
        step: a resumed run repeats it, and does what is demanded.
        """
        if self._learned is None:
            return True
        judged = self._judge({})
        if judged.stop is not None or judged.better is not None:
            return False
        self._write(judged)
        return True

    async def save(self) -> None:
        """Save the weights as a checkpoint, unless they are saved already."""
        if self._saved_version != self.learner.version:
            await finish(self._save())

    def write_checkpoint(self) -> Path:
        """Write the weights as a checkpoint, unless they are written already; may be called from any thread."""
        timeout = self.config.training.timeout
        if not self._writing.acquire(timeout=timeout):
            raise RunError(
                f"waited {timeout:g} s for the learner to be done with its weights", fix="raise training.timeout"
            )
        try:
            version = self.learner.version
            path = self.recorder.folder.checkpoint(version)
            if self._saved_version != version:
                with self.recorder.folder.new_checkpoint(version) as folder:
                    self.recorder.sync()  # A run that is resumed from here keeps the metrics up to here.
                    save_checkpoint(
                        folder,
                        self.learner,
                        cursor=self._cursor,
                        conversing=self.conversing,
                        seconds=self.elapsed(),
                    )
                self._saved_version, self.saved = version, path
            return path
        finally:
            self._writing.release()

    async def _in_thread(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in a thread, and name ``what`` is waited for where that takes too long.

        Until then it is waited for in any case: no weights may change while they are saved.
        """
        work = finish_in_thread(function, *arguments)
        return await within(self.config.training.timeout, what, work, key="training.timeout", error=RunError)

    async def _save(self) -> None:
        version = self.learner.version
        if self._writing.locked():
            raise RunError(
                f"the weights of version {version} are not saved: a call that did not end in time holds them",
                fix="go on from the newest checkpoint",
            )
        self.recorder.reporter.activity_started("saving a checkpoint")
        with self._stopwatch.time("checkpoint"):
            path = await self._in_thread(f"checkpoint {version} to be written", self.write_checkpoint)
            await self._in_thread("old checkpoints to be removed", self._prune)
        self.recorder.checkpoint(path)

    def _prune(self) -> None:
        source = None if self.resumed is None else self.resumed.checkpoint
        old = superseded(self._run, self.config.training.keep, [self.saved, source])
        self.recorder.folder.prune(old)

    async def _step(self) -> None:
        step = self.learner.version + 1
        with self._stopwatch.time("step"):
            taken = await self._taken()
            groups = taken.groups
            self._check_recorded(groups)
            await self.recorder.begin_step(_membership(step, taken))
            await self._record_for_proof(groups)
            learned = await self._learn_from(taken)
            await self._evaluated()
            with self._stopwatch.time("weights"):
                await self._serve_weights()
            proven = await self._prove()
        judged = self._judge(proven)
        self._write(judged)
        if not learned.get("staleness/max") and not self._lost_tokens(groups):
            self._agreement.look(step, learned)  # Tokens of other weights differ from those of the newest.
        stop, better = judged.stop, judged.better
        if better is not None:
            await self._go_back(better)
        elif stop is None and self._due(self.config.evaluation.every):
            await self._evaluate_beside()
        self._supply.served(self.learner.version)
        self._cursor = self._supply.cursor
        if stop is not None:
            raise stop
        if better is not None:
            await self.save()

    async def _learn_from(self, taken: Taken) -> dict[str, float]:
        """Make new weights of the groups of a step; returns the learner's metrics."""
        self.recorder.batch(taken.groups)
        self.recorder.reporter.activity_started("learning")
        with self._stopwatch.time("learner"):
            return await self._in_thread(f"the learner to take step {self.learner.version + 1}", self._learn, taken)

    def _judge(self, proven: Mapping[str, float]) -> _Judged:
        """The metrics of the step that made the weights, and what the rules of learning health say of them."""
        learned, self._learned = self._learned, None
        assert learned is not None
        step, taken, of_learner = learned
        counted = {**rollout_metrics((*taken.groups, *taken.left_out)), **self._supply.counts()}
        metrics = {**counted, **of_learner, **proven}
        metrics |= self._stopwatch.take()
        if lost := self._lost_tokens(taken.groups):
            metrics["tokens/lost_lineage"] = lost
        findings = self._health.step(step, metrics)
        return _Judged(step, taken, metrics, findings, *self._heed(findings))

    def _write(self, judged: _Judged) -> None:
        step, taken, metrics, findings, stop, better = judged
        self.recorder.step(step, metrics if better is None else {**metrics, ROLLED_BACK: better.step})
        said = findings if stop is None else [each for each in findings if each.action == "warn"]
        self._warn(step, metrics, said, taken.groups)

    def _lost_tokens(self, groups: Sequence[Group]) -> int:
        return 0 if self.resumed is None else self.resumed.lineage.lost_tokens(groups)

    def _warn(self, step: int, metrics: Mapping[str, float], findings: list[Finding], groups: Sequence[Group]) -> None:
        warnings = [str(finding) for finding in findings]
        if not self._told_too_long and (too_long := self._too_long(step, groups)):
            self._told_too_long = True
            warnings.append(too_long)
        if step == 1 and self.config.rollout.constrained == "exclude" and (excluded := _mostly_excluded(metrics)):
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
        self._supply.pause()
        await self._supply.at_rest()
        version = self.learner.version + 1
        self.recorder.reporter.warning(
            f"going back to {best.path.name}, the best checkpoint by evaluation; its weights go on as version {version}"
        )
        await self._in_thread(f"the learner to load {best.path}", self._restore, best.path, version)
        await self._serve_weights()
        await self._prove()
        self._health.back_to(best.step)
        self._supply.resume()

    def _restore(self, folder: Path, version: int) -> None:
        with self._writing:
            self.learner.go_back(folder, version)

    async def _taken(self) -> Taken:
        """The groups of the next step, once they are there."""
        rollout = self.config.rollout
        self.recorder.reporter.activity_started(self._waiting, episodes=rollout.tasks_per_step * rollout.group_size)
        with self._stopwatch.time("rollout"):
            return await self._supply.take()

    async def _serve_weights(self) -> None:
        update = self.serving.backend.update_weights
        await self._lent("the inference engine", update, "the inference engine to take new weights")

    async def _record_for_proof(self, groups: Sequence[Group]) -> None:
        """Keep a call of the step for the proof of its update; of the first, measure what engine and learner differ by.

        Both have the same weights now.
        """
        recorded = Recorded.of(episode.tree for group in groups for episode in group.episodes) or self._recorded
        self._recorded = recorded
        if recorded is not None and not self._proof.prepared:
            await self._lent(
                "the proof of the engine's weights",
                lambda weights: self._proof.prepare(self.serving.backend, weights, recorded),
                "the inference engine to score recorded tokens",
            )

    async def _prove(self) -> dict[str, float]:
        """Have the engine show that it has the newest weights, before anything is sampled from them for training."""
        prompt_ids = self._recorded.prompt_ids if self._recorded is not None else ()
        return await self._lent(
            "the proof of the engine's weights",
            lambda weights: self._proof.prove(self.serving.backend, weights, prompt_ids),
            "the inference engine to prove that it has the new weights",
        )

    async def _lent(self, borrower: str, use: Callable[[Weights], Coroutine[Any, Any, Result]], what: str) -> Result:
        """Lend the weights to ``borrower`` for ``use``, and name ``what`` is waited for where that takes too long."""

        async def used() -> Result:
            with self.learner.lend(borrower) as weights:
                return await use(weights)

        return await within(self.config.inference.timeout, what, used())

    def _learn(self, taken: Taken) -> dict[str, float]:
        rollout, version, groups = self.config.rollout, self.learner.version, taken.groups
        choices = rollout.constrained == "train"
        if version == 0 and self._checks_first:  # People may ask for any form.
            _check_trained(wholly_excluded(groups, allowed=self.grammars, choices=choices), choices)
        batch, account = build_batch(
            groups,
            self.algorithm,
            allowed=self.grammars,
            choices=choices,
            oldest=version - rollout.max_staleness if rollout.on_stale == "mask" else None,
            longest=self.config.training.tokens_per_batch,
        )
        ledger = step_ledger(groups, account.fates, left_out=taken.left_out, stale=taken.stale)
        with self._writing:
            learned = {**account.counts, **ledger.metrics(), **self.learner.step(batch)}
            # Here, because whoever waits for this may be interrupted meanwhile.
            self._learned = _Learned(self.learner.version, taken, learned)
        return learned

    def _too_long(self, step: int, groups: Sequence[Group]) -> str | None:
        """A warning of the episodes of a step that are longer than a pass."""
        longest = self.config.training.tokens_per_batch
        lengths = [episode.tree.longest_path() for group in groups for episode in group.episodes]
        over = [length for length in lengths if length > longest]
        if not over:
            return None
        worth = "" if self.config.is_online else "; rollout.on_overflow says what they are worth"
        return (
            f"{len(over)} of {len(lengths)} episodes of step {step} are longer than a pass, and are "
            f"not trained (set training.tokens_per_batch={longest} to {max(over)} or more, or bound the agent's turns "
            f"and tokens{worth})"
        )

    async def _evaluate_beside(self) -> None:
        """Evaluate the weights: alone, or beside episodes of training where ``evaluation.overlap`` says so."""
        if self.evaluator is None:
            return
        if self.config.evaluation.overlap:
            self._evaluating = asyncio.get_running_loop().create_task(self._measure(self.evaluator))
            return
        self._supply.pause()
        with self._stopwatch.time("rollout"):
            await self._supply.at_rest()
        await self._evaluate()
        self._supply.resume()

    async def _evaluate(self) -> None:
        if self.evaluator is not None:
            self._record(await self._measure(self.evaluator))

    async def _evaluated(self) -> None:
        """Wait for the evaluation that is running, if one is: no weights may change before."""
        evaluating, self._evaluating = self._evaluating, None
        if evaluating is not None:
            self._record(await evaluating)

    async def _measure(self, evaluator: Evaluator) -> Evaluation:
        self.recorder.reporter.activity_started("evaluating", episodes=evaluator.episodes)
        with self._stopwatch.time("evaluation"):
            return await evaluator.run(self.learner.version)

    def _record(self, evaluation: Evaluation) -> None:
        self.latest = evaluation
        self._health.evaluation(evaluation.step, evaluation.metrics())
        self.recorder.evaluation(evaluation)

    async def _stop_evaluating(self) -> None:
        if self._evaluating is not None:
            self._evaluating.cancel()
            await asyncio.wait({self._evaluating})

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
