"""The rules of learning health: what the numbers of a healthy run do not do, as pure functions of a run's history.

A rule looks at the mean over a window of steps, so that one odd step is no finding. It says how far a value is beyond
its threshold, and its sentence names the metric, the value and what to do. ``docs/health.md`` documents every rule;
where a threshold or the trouble itself is from the literature, ``Rule.source`` says from where. ``findings.py``
decides when a finding is said, and what is done about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["RULES", "WINDOW", "History", "Reading", "Rule"]

WINDOW = 5
"""Steps that a mean is taken over."""
_CERTAIN = 0.01
"""Entropy in nats a token below which a policy was certain from the beginning: there is nothing to collapse."""
_FEWEST_EVALUATIONS = 3
"""Evaluations over which training and held-out rewards are compared, the newest among them."""


@dataclass(slots=True)
class History:
    """The metrics of a run so far: of its steps and of its evaluations, each by its step, in their order."""

    planned: int
    """Optimiser steps that the run is configured to do."""
    max_staleness: int = 0
    """The run's ``rollout.max_staleness``."""
    steps: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    evaluations: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)

    def cut(self, step: int) -> None:
        """Forget what came after ``step``."""
        self.steps = [row for row in self.steps if row[0] <= step]
        self.evaluations = [row for row in self.evaluations if row[0] <= step]

    def total(self, name: str) -> float | None:
        """The sum of a metric over the last ``WINDOW`` steps; ``None`` before there are as many, or where none has it.

        A step without the metric, or with one that is not finite, adds nothing.
        """
        values = list(self._finite(name, self.steps[-WINDOW:]))
        return math.fsum(values) if values and len(self.steps) >= WINDOW else None

    def latest(self, name: str, at: int | None = None) -> float | None:
        """The mean of a metric over the last ``WINDOW`` steps up to step ``at``, by default the newest."""
        steps = self.steps if at is None else [row for row in self.steps if row[0] <= at]
        return _mean(list(self._finite(name, steps[-WINDOW:]))) if len(steps) >= WINDOW else None

    def first(self, name: str) -> float | None:
        """The mean over the first ``WINDOW`` steps; ``None`` before these and the latest are different steps."""
        return _mean(list(self._finite(name, self.steps[:WINDOW]))) if len(self.steps) >= 2 * WINDOW else None

    @staticmethod
    def _finite(name: str, steps: list[tuple[int, Mapping[str, float]]]) -> Iterator[float]:
        for _, metrics in steps:
            value = metrics.get(name)
            if value is not None and math.isfinite(value):
                yield value


class Reading(NamedTuple):
    """What a rule says of the newest step."""

    excess: float
    """How far the value is on its way to the threshold: above 1 it is beyond it."""
    said: str
    """The value and its metric, as the beginning of a sentence."""
    fix: str
    """What to do about it."""
    kind: str = ""
    """Tells apart troubles of one rule that are each worth saying."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``read`` is given the history and the threshold, and is ``None`` where nothing can be said yet."""

    name: str
    """Its key in the config's section ``health``."""
    metrics: tuple[str, ...]
    """The metrics that it reads."""
    condition: str
    """When it finds something, in words, with ``{threshold}`` in it."""
    threshold: float
    """The threshold where the config sets none."""
    read: Callable[[History, float], Reading | None]
    source: str = ""
    """Where the trouble, or the threshold, is described."""
    after: Literal["step", "evaluation"] = "step"
    """After what it is judged."""


def _zero_variance(history: History, threshold: float) -> Reading | None:
    received, alike = history.total("ledger/received"), history.total("ledger/without_difference")
    if not received or alike is None:
        return None
    share, reward = alike / received, history.latest("reward/mean")
    said = f"ledger/without_difference is {share:.0%} of the episodes of the last {WINDOW} steps"
    tasks = (
        "tasks on which episodes of one group end differently (easier ones where rewards are low, harder where high)"
    )
    reached = "" if reward is None else f", at a mean reward of {reward:.3g}"
    return Reading(
        share / threshold,
        f"{said}{reached}: no episode did better than another of its group, so they teach nothing",
        f"choose {tasks}, raise rollout.group_size, or have such groups replaced: rollout.dynamic_sampling=2 with "
        "algorithm={name: grpo, filter: zero_variance}",
    )


def _entropy_collapse(history: History, threshold: float) -> Reading | None:
    first, now = history.first("policy/entropy"), history.latest("policy/entropy")
    if first is None or now is None or first < _CERTAIN:
        return None
    return Reading(
        threshold * first / max(now, 1e-12),
        f"policy/entropy is {now:.2g} nats a token over the last {WINDOW} steps, {now / first:.0%} of the {first:.2g} "
        f"of the first {WINDOW}: the policy hardly explores any more",
        "lower training.learning_rate, raise rollout.temperature, or clip less upwards with "
        "algorithm={name: grpo, objective: {clip_high: 0.28}}",
    )


def _length_growth(history: History, threshold: float) -> Reading | None:
    first, now = history.first("episode/tokens"), history.latest("episode/tokens")
    if not first or now is None:
        return None
    before, reward = history.first("reward/mean"), history.latest("reward/mean")
    pays = before is not None and reward is not None and reward > before
    worth = f"reward/mean went from {before:.3g} to {reward:.3g}" if before is not None and reward is not None else ""
    return Reading(
        0.0 if pays else now / first / threshold,
        f"episode/tokens is {now:,.0f} over the last {WINDOW} steps, {now / first:.1f} times the {first:,.0f} of the "
        f"first {WINDOW}, and rewards did not rise with it{f' ({worth})' if worth else ''}",
        "set algorithm={name: grpo, normalisation: constant}, which does not favour long wrong answers, lower "
        "rollout.max_tokens, or let the reward count length",
    )


def _truncation(history: History, threshold: float) -> Reading | None:
    cut, calls = history.total("rollout/truncated"), history.total("rollout/calls")
    if cut is None or not calls:
        return None
    return Reading(
        cut / calls / threshold,
        f"rollout/truncated is {cut / calls:.0%} of the completions of the last {WINDOW} steps: they were cut at their "
        "limit of tokens, and are rewarded for what they had not finished",
        "raise rollout.max_tokens, or let the reward or the prompt ask for shorter answers",
    )


def _mismatch_kl(history: History, threshold: float) -> Reading | None:
    mismatch = history.latest("policy/mismatch_kl")
    if mismatch is None:
        return None
    limit = threshold * (1 + history.max_staleness)
    return Reading(
        mismatch / limit,
        f"policy/mismatch_kl is {mismatch:.2g} nats a token over the last {WINDOW} steps (limit {limit:.2g}): tokens "
        "are trained that the learner's policy would hardly have sampled",
        "lower training.learning_rate or rollout.max_staleness, set training.precision=float32 or "
        "algorithm={name: grpo, correction: truncated}; agentrl doctor compares engine and learner",
    )


def _clip_fraction(history: History, threshold: float) -> Reading | None:
    clipped = history.latest("policy/clip_fraction")
    if clipped is None:
        return None
    return Reading(
        clipped / threshold,
        f"policy/clip_fraction is {clipped:.0%} over the last {WINDOW} steps: the objective cuts off what so many "
        "tokens would teach, because the policy has moved too far from the one that sampled them",
        "lower training.learning_rate or rollout.max_staleness",
    )


def _staleness(history: History, threshold: float) -> Reading | None:
    age = history.latest("staleness/mean")
    if age is None:
        return None
    return Reading(
        age / threshold,
        f"staleness/mean is {age:.2g} versions over the last {WINDOW} steps",
        "lower rollout.max_staleness, give the inference engine more capacity, or see which episodes take so long",
    )


def _stale_share(history: History, threshold: float) -> Reading | None:
    received, stale = history.total("ledger/received"), history.total("ledger/stale")
    masked, trained = history.total("tokens/stale"), history.total("tokens/trained")
    shares = {
        "ledger/stale": stale / received if received and stale is not None else 0.0,
        "tokens/stale": masked / (masked + trained) if masked and trained is not None else 0.0,
    }
    name, share = max(shares.items(), key=lambda item: item[1])
    what = "episodes" if name == "ledger/stale" else "tokens"
    return Reading(
        share / threshold,
        f"{name} is {share:.0%} of the {what} of the last {WINDOW} steps: they were sampled in vain, and the longest "
        "episodes are the likeliest among them",
        "set rollout.on_stale=wait, which loses nothing, or raise rollout.max_staleness",
    )


def _reward_gap(history: History, threshold: float) -> Reading | None:
    if len(history.evaluations) < _FEWEST_EVALUATIONS:
        return None
    (start, before), *_, (end, after) = history.evaluations[-_FEWEST_EVALUATIONS:]
    now = history.latest("reward/mean", at=end)
    then = history.latest("reward/mean", at=start) if start else history.first("reward/mean")
    spread, episodes = history.latest("reward/std"), history.latest("rollout/episodes")
    if now is None or then is None or spread is None or not episodes:
        return None
    # Standard errors of the two differences of means; the spread of held-out rewards is taken to be the same.
    spread = max(spread, 1e-9) * math.sqrt(2)
    rise, noise = now - then, spread / math.sqrt(episodes * WINDOW)
    held_out, uncertain = after["evaluation/reward"], spread / math.sqrt(max(after.get("evaluation/episodes", 1), 1))
    stands = held_out - before["evaluation/reward"] < uncertain and held_out < now - uncertain
    return Reading(
        rise / noise / threshold if stands else 0.0,
        f"reward/mean rose from {then:.3g} to {now:.3g} between steps {start} and {end}, while evaluation/reward went "
        f"from {before['evaluation/reward']:.3g} to {after['evaluation/reward']:.3g}: what is learned does not carry "
        "over to held-out tasks",
        "read episodes with high rewards for a way round the task, train on more tasks, or go back to an "
        "earlier checkpoint",
    )


def _stage_wait(history: History, threshold: float) -> Reading | None:
    seconds = history.total("seconds/step")
    # Without staleness the stages take turns: each waits for the other by design.
    if not seconds or not history.max_staleness:
        return None
    waits = {name: (history.total(name) or 0.0) / seconds for name in _WAITS}
    name, share = max(waits.items(), key=lambda item: item[1])
    what, fix = _WAITS[name]
    return Reading(
        share / threshold,
        f"{name} is {share:.0%} of seconds/step over the last {WINDOW} steps: {what}",
        fix,
        kind=name,
    )


_WAITS = {
    "seconds/rollout": (
        "the learner waits for rollouts",
        "raise rollout.concurrency, give the inference engine more capacity, or raise rollout.max_staleness",
    ),
    "seconds/held": (
        "rollouts wait for the learner",
        "give the learner a faster device, or see to it that rollouts leave it room",
    ),
}

_EQUAL = "in no group did one rewarded episode do better than another"
_REJECTED = "the agent rejected every episode"
_OVER_LONG = "most episodes were longer than training.tokens_per_batch, the most tokens of a pass of the learner"
_LIMITED = "every episode ran into a limit, and rollout.on_overflow=reject rejected it"
_UNREWARDED = "no episode had a reward"
_UNTRAINED = "none of the tokens could be trained"
_INFINITE = "the gradient was not a finite number"
_FIXES = {
    _EQUAL: "choose tasks that succeed now and then, raise rollout.group_size or rollout.temperature, or let the "
    "agent's reward tell better from worse",
    _REJECTED: "return a reward instead of None",
    _OVER_LONG: "raise training.tokens_per_batch, or lower rollout.max_tokens",
    _LIMITED: "raise the limit that the metrics rollout/limits/LIMIT name, or set rollout.on_overflow={reward: 0}",
    _UNREWARDED: "see why episodes fail, and return a reward instead of None",
    _UNTRAINED: "set rollout.constrained=train where a grammar constrained them, or let the model draw from its own "
    "distribution: no grammar, and no temperature of 0",
    _INFINITE: "return smaller rewards, lower training.learning_rate or set training.precision=float32",
}


def _no_update(history: History, threshold: float) -> Reading | None:
    """A step that changed nothing for a reason other than luck is told at once, and a run that learned nothing twice:
    after ``threshold`` steps and after its last."""
    step, metrics = history.steps[-1]
    reason = _why_unchanged(metrics)
    ends = {int(threshold): "nothing yet", history.planned: "nothing at all"}
    if step in ends and not any(_why_unchanged(each) is None for _, each in history.steps):
        return Reading(2.0, *_nothing_learned(history), kind=ends[step])
    if reason in (None, _EQUAL):
        return Reading(0.0, "", "")
    return Reading(2.0, f"step {step} changed nothing: {reason}", _FIXES[reason], kind=reason)


def _nothing_learned(history: History) -> tuple[str, str]:
    counts: dict[str, int] = {}
    for _, metrics in history.steps:
        reason = _why_unchanged(metrics)
        if reason is not None:
            counts[reason] = counts.get(reason, 0) + 1
    ordered = sorted(counts, key=lambda reason: -counts[reason])
    reasons = ordered[0] if len(ordered) == 1 else "; ".join(f"in {counts[reason]}, {reason}" for reason in ordered)
    return f"nothing was learned up to step {history.steps[-1][0]}: {reasons}", _FIXES[ordered[0]]


def _why_unchanged(metrics: Mapping[str, float]) -> str | None:
    """Why the step changed no weights; ``None`` where it did."""
    if metrics.get("policy/updated"):
        return None
    if not all(math.isfinite(metrics.get(name, 0.0)) for name in ("policy/grad_norm", "policy/loss")):
        return _INFINITE
    if metrics.get("ledger/over_long", 0) > metrics.get("ledger/received", 0) / 2:
        return _OVER_LONG
    if "reward/mean" not in metrics:
        if metrics.get("rollout/limited") == metrics.get("rollout/rejected") == metrics.get("rollout/episodes"):
            return _LIMITED
        return _REJECTED if metrics.get("rollout/rejected") == metrics.get("rollout/episodes") else _UNREWARDED
    return _UNTRAINED if not metrics.get("tokens/trained") and metrics.get("tokens/excluded") else _EQUAL


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


RULES = (
    Rule(
        "no_update",
        (
            *("policy/updated", "policy/loss", "policy/grad_norm", "reward/mean", "rollout/episodes"),
            *("rollout/rejected", "rollout/limited", "tokens/trained", "tokens/excluded"),
            *("ledger/over_long", "ledger/received"),
        ),
        "a step changed no weights for another reason than equal rewards, or no step had changed any after {threshold} "
        "steps, and after the last",
        5,
        _no_update,
    ),
    Rule(
        "zero_variance",
        ("ledger/without_difference", "ledger/received", "reward/mean"),
        "more than {threshold} of the episodes were in groups in which none did better than another",
        0.9,
        _zero_variance,
        source="Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.2",
    ),
    Rule(
        "entropy_collapse",
        ("policy/entropy",),
        "the entropy fell below {threshold} of that of the first steps",
        0.1,
        _entropy_collapse,
        source="Cui et al. 2025, The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, "
        "arXiv:2505.22617",
    ),
    Rule(
        "length_growth",
        ("episode/tokens", "reward/mean"),
        "episodes have more than {threshold} times the sampled tokens of the first steps, and rewards did not rise",
        2.0,
        _length_growth,
        source="Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv:2503.20783, section 3.1",
    ),
    Rule(
        "truncation",
        ("rollout/truncated", "rollout/calls"),
        "more than {threshold} of the completions were cut at their limit of tokens",
        0.25,
        _truncation,
        source="Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.4",
    ),
    Rule(
        "mismatch_kl",
        ("policy/mismatch_kl",),
        "the mismatch KL was above {threshold} nats a token, times 1 + rollout.max_staleness",
        0.1,
        _mismatch_kl,
    ),
    Rule(
        "clip_fraction",
        ("policy/clip_fraction",),
        "the objective cut off the gradient of more than {threshold} of the tokens",
        0.2,
        _clip_fraction,
    ),
    Rule(
        "staleness",
        ("staleness/mean",),
        "the trained tokens were older than {threshold} versions on average",
        4.0,
        _staleness,
        source="Fu et al. 2025, AReaL, arXiv:2505.24298, the ablation of staleness",
    ),
    Rule(
        "stale_share",
        ("ledger/stale", "ledger/received", "tokens/stale", "tokens/trained"),
        "more than {threshold} of the episodes, or of the tokens, were left out as too old",
        0.1,
        _stale_share,
    ),
    Rule(
        "reward_gap",
        ("reward/mean", "reward/std", "rollout/episodes", "evaluation/reward", "evaluation/episodes"),
        f"over the last {_FEWEST_EVALUATIONS} evaluations the training reward rose by more than {{threshold}} standard "
        "errors, and the held-out reward, which is below it, by less than one",
        3.0,
        _reward_gap,
        source="Gao et al. 2022, Scaling Laws for Reward Model Overoptimization, arXiv:2210.10760",
        after="evaluation",
    ),
    Rule(
        "stage_wait",
        ("seconds/rollout", "seconds/held", "seconds/step"),
        "with rollout.max_staleness above 0, one stage waited for the other for more than {threshold} of the time",
        0.75,
        _stage_wait,
    ),
)
"""Every rule, in the order of the documentation."""
