"""Groups of episodes: what fails, what is too long, and whether comparing their rewards teaches anything."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from statistics import pstdev
from typing import TYPE_CHECKING

from agentrl.algorithms.batch import compare
from agentrl.algorithms.contract import Algorithm
from agentrl.config.models import Config
from agentrl.doctor.agent import FIXES, parted
from agentrl.doctor.report import Finding, futile, note, ok, problem, warning
from agentrl.errors import RunError
from agentrl.reporting.plain import reward_text
from agentrl.rollout.contract import Episode, Group
from agentrl.rollout.dispatcher import FailureBudget
from agentrl.runs.tally import Reasons, mean
from agentrl.tokens.contract import TokenTree
from agentrl.training.requests import group_request
from agentrl.training.task_order import TaskOrder

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case

__all__ = ["group"]

_TASKS = 4
"""The most tasks that are run, a group each."""
_NEARLY_FULL = 0.9
"""The share of the context above which a call is said to be long."""
_MANY_CUT = 0.25
"""The share of completions above which those that were cut are a warning."""
_TELL_APART = (
    "choose tasks that succeed now and then, raise rollout.group_size or rollout.temperature, or let the reward "
    "tell better from worse"
)


async def group(case: Case) -> AsyncIterator[Finding]:
    """Run the first groups that training would run, and compare their rewards."""
    config = case.config
    order = TaskOrder(case.parts.train_tasks, config.seed)
    ordinals = range(min(_TASKS, config.rollout.tasks_per_step))
    requests = [group_request(config, order, ordinal, lambda: case.learner.version) for ordinal in ordinals]
    total = len(ordinals) * config.rollout.group_size
    case.episode_ended = lambda: case.doing(f"running groups of episodes, {len(case.episodes)} of {total} done")
    began = time.monotonic()
    case.groups = []
    with contextlib.suppress(RunError):  # Raised where all have failed, which is reported from the episodes below.
        unlimited = replace(case.serving.dispatcher, budget=FailureBudget(1.0, total))
        case.groups = await unlimited.collect(requests)
    seconds = time.monotonic() - began
    failed = [episode for episode in case.episodes if episode.failure is not None]
    if failed:
        yield _failures(failed, total, config.rollout.failure_budget)
    for finding in _retried(case.episodes):
        yield finding
    if not case.groups:
        return
    for finding in (_rewards(case.groups, case.algorithm), *_lengths(case), *_calls(case.episodes)):
        yield finding
    yield _pace(config, total, seconds)


def _failures(failed: Sequence[Episode], total: int, budget: float) -> Finding:
    failures = [episode.failure for episode in failed if episode.failure is not None]
    sides = Counter(failure.side for failure in failures)
    reasons = Reasons()
    for episode, failure in zip(failed, failures, strict=True):
        reasons.add(failure.kind, str(failure), episode.key)
    (commonest,) = reasons.commonest(1)
    reason, fix = parted(commonest.reason)
    text = f"{len(failed)} of {total} episodes failed; commonest, {commonest.count} times: {reason}"
    fix = fix or FIXES[sides.most_common(1)[0][0]]
    figures = {"failed": len(failed), "of": total, "sides": dict(sides)}
    if len(failed) > budget * total or len(failed) == total:
        text = f"{text}; a run ends at more than rollout.failure_budget={budget:g}"
        return problem(text, fix=fix, like=RunError, blocks=len(failed) == total, **figures)
    return warning(text, fix=fix, **figures)


def _rewards(groups: Sequence[Group], algorithm: Algorithm) -> Finding:
    rewards = [episode.reward for group in groups for episode in group.episodes if episode.reward is not None]
    if not rewards:
        return futile("the agent rejected every task: no episode has a reward", fix="return a reward instead of None")
    apart = sum(compare(group, algorithm).tells_apart for group in groups)
    figures = {
        "groups": len(groups),
        "groups_that_differ": apart,
        "reward_mean": mean(rewards),
        "reward_std": pstdev(rewards),
        "reward_min": min(rewards),
        "reward_max": max(rewards),
    }
    text = (
        f"{len(rewards)} rewards with a mean of {reward_text(mean(rewards))}, a standard deviation of "
        f"{reward_text(pstdev(rewards))}, from {min(rewards):g} to {max(rewards):g}"
    )
    if not apart:
        alike = f"in none of {len(groups)} groups did one episode do better than another, so there is nothing to learn"
        return futile(f"{text}; {alike}", fix=_TELL_APART, **figures)
    return ok(f"{text}; {apart} of {len(groups)} groups have better episodes and worse ones", **figures)


def _lengths(case: Case) -> Iterator[Finding]:
    context = case.serving.capabilities.context_length
    longest = max((call.prompt_tokens + call.completion_tokens for e in case.episodes for call in e.calls), default=0)
    path = max((_depth(episode.tree) for episode in case.episodes), default=0)
    allowed = case.config.training.pass_tokens
    text = f"the longest call has {longest:,} tokens of a context of {context:,}"
    figures = {"longest_call_tokens": longest, "context_length": context, "longest_path_tokens": path}
    if longest > _NEARLY_FULL * context:
        fix = "give the model a longer context, or bound the agent's history and rollout.max_tokens"
        yield warning(text, fix=fix, **figures)
    else:
        yield ok(text, **figures)
    if path > allowed:
        text = f"an episode of {path:,} tokens does not fit training.tokens_per_batch={allowed}"
        yield problem(text, fix=f"set training.tokens_per_batch to {path} or more", like=RunError, blocks=True)


def _depth(tree: TokenTree) -> int:
    """The tokens on the longest path from the root."""
    ends: list[int] = []
    starts: list[int] = []
    for span in tree.spans:
        starts.append(starts[span.parent] + span.fork if span.parent >= 0 else 0)
        ends.append(starts[-1] + len(span.ids))
    return max(ends, default=0)


def _retried(episodes: Sequence[Episode]) -> Iterator[Finding]:
    reasons = Reasons()
    for episode in episodes:
        for setback in episode.setbacks:
            reasons.add(setback.kind, str(setback), episode.key)
    for commonest in reasons.commonest(1):
        reason, fix = parted(commonest.reason)
        text = f"{reasons.total} failed calls or attempts were repeated; commonest, {commonest.count} times: {reason}"
        yield warning(text, fix=fix or FIXES["backend"], retried=reasons.total)


def _calls(episodes: Sequence[Episode]) -> Iterator[Finding]:
    calls = [call for episode in episodes for call in episode.calls]
    cut = sum(call.finish_reason == "length" for call in calls)
    if cut > _MANY_CUT * len(calls):
        yield warning(
            f"{cut} of {len(calls)} completions were cut by max_tokens or the context",
            fix="raise rollout.max_tokens, or what the agent asks for",
            truncated=cut,
            calls=len(calls),
        )
    forks = Counter(call.fork_reason for call in calls if call.fork_reason is not None)
    if forks:
        reasons = ", ".join(f"{count} for {reason!r}" for reason, count in forks.most_common(3))
        yield note(f"{forks.total()} of {len(calls)} prompts were rendered in full: {reasons}", forks=dict(forks))
    rejected = sum(episode.outcome == "rejected" for episode in episodes)
    if rejected:
        yield note(f"{rejected} of {len(episodes)} episodes were rejected by the agent", rejected=rejected)
    mistakes = sum(episode.mistake is not None for episode in episodes)
    if mistakes:
        yield note(f"{mistakes} of {len(episodes)} episodes ended with an error of the policy", mistakes=mistakes)


def _pace(config: Config, episodes: int, seconds: float) -> Finding:
    rollout = config.rollout
    step = rollout.tasks_per_step * rollout.group_size
    expected = step * seconds / episodes
    return note(
        f"{episodes} episodes took {seconds:.1f} s; the {step} of a step would take about {expected:.1f} s",
        seconds=round(seconds, 3),
        episodes=episodes,
        step_seconds=round(expected, 3),
    )
