"""What a batch of groups was like, in numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from agentrl.rollout.contract import Episode, Group

__all__ = ["mean", "mean_parts", "rollout_metrics"]


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Counts of a batch's episodes, and means over those that were rewarded.

    ``rollout/mistakes`` counts episodes that an error of the policy has ended, ``rollout/setbacks`` failures of calls
    and of whole attempts that were tried again, ``rollout/forks`` calls whose history had to be rendered anew,
    ``rollout/overridden`` calls whose fields ``rollout.override`` changed, ``rollout/unmet`` calls that did without
    something that they asked for, ``rollout/undelivered`` calls whose answers came too late for their client, and
    ``rollout/control_tokens`` calls whose texts the model read as control tokens. ``reward/parts/NAME`` is the mean of
    what rewards say that they are made of.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    calls = [call for episode in episodes for call in episode.calls]
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    metrics: dict[str, float] = {
        "rollout/episodes": len(episodes),
        "rollout/failed": sum(episode.outcome == "failed" for episode in episodes),
        "rollout/rejected": sum(episode.outcome == "rejected" for episode in episodes),
        "rollout/mistakes": sum(episode.mistake is not None for episode in episodes),
        "rollout/retried": sum(episode.attempts > 1 for episode in episodes),
        "rollout/setbacks": sum(len(episode.setbacks) for episode in episodes),
        "rollout/calls": len(calls),
        "rollout/forks": sum(call.fork_reason is not None for call in calls),
        "rollout/overridden": sum(bool(call.overridden) for call in calls),
        "rollout/undelivered": sum(not call.delivered for call in calls),
        "rollout/unmet": sum(bool(call.unmet) for call in calls),
        "rollout/control_tokens": sum(bool(call.control_tokens) for call in calls),
        "rollout/truncated": sum(call.finish_reason == "length" for call in calls),
        "tokens/prompt": sum(call.prompt_tokens for call in calls),
        "tokens/completion": sum(call.completion_tokens for call in calls),
        "episode/seconds": statistics.fmean(episode.seconds for episode in episodes),
        "episode/calls": len(calls) / len(episodes),
    }
    if rewards:
        metrics["reward/mean"] = mean(rewards)
        metrics["reward/std"] = statistics.pstdev(rewards)
    return metrics | {f"reward/parts/{name}": value for name, value in mean_parts(episodes).items()}


def mean(values: Sequence[float]) -> float:
    """The mean of numbers that may be as large as a float can be: a sum of them would be infinite."""
    return float(statistics.mean(values))


def mean_parts(episodes: Iterable[Episode]) -> dict[str, float]:
    """The mean of each part of rewards, by its name, over the episodes that have it."""
    values: dict[str, list[float]] = {}
    for episode in episodes:
        for name, value in episode.reward_parts.items():
            values.setdefault(name, []).append(value)
    return {name: mean(those) for name, those in sorted(values.items())}
