"""A batch: what a step trains on, as root-to-leaf paths of token ids and the loss terms on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentrl.algorithms.algorithm import Algorithm
from agentrl.algorithms.paths import cover
from agentrl.algorithms.terms import Completion, Terms, tabulate
from agentrl.rollout.contract import Episode, EpisodeKey, Group, delivered_calls

if TYPE_CHECKING:
    from agentrl.algorithms.contract import ByCall, Ints

__all__ = ["Batch", "collect"]


@dataclass(frozen=True, slots=True)
class Batch:
    """All that the learner needs of its groups."""

    paths: tuple[Ints, ...]
    """Ids from the root, one array a path."""
    terms: Terms
    zero_variance: int
    """Groups in which no call is better than another."""
    excluded: int
    """Tokens of credited calls that are not trained, because they were not drawn from the policy alone."""
    episodes: tuple[EpisodeKey, ...] = ()
    """Which episode each path is of."""


def collect(groups: Sequence[Group], algorithm: Algorithm) -> Batch:
    """The paths and loss terms of the rewarded episodes; rejected and failed ones have no part in it.

    Left out are tokens sampled under a grammar or greedily, calls that no reward reaches, calls whose answers the agent
    never had, and given tokens that no trained token follows.
    """
    paths: list[Ints] = []
    keys: list[EpisodeKey] = []
    completions: list[Completion] = []
    zero_variance = excluded = episodes = 0
    for group in groups:
        rewarded = [episode for episode in group.episodes if episode.outcome == "rewarded"]
        advantages = algorithm.advantage([algorithm.credit(_as_delivered(episode)) for episode in rewarded])
        zero_variance += not any(value for by_call in advantages for value in by_call.values())
        for episode, by_call in zip(rewarded, advantages, strict=True):
            trained, left_out = _select(episode, by_call)
            for path in cover(episode.tree, trained):
                completions += _completions(episode, path.spans, by_call, len(paths), episodes)
                paths.append(path.ids)
                keys.append(episode.key)
            excluded += left_out
            episodes += 1
    return Batch(tuple(paths), tabulate(completions, algorithm.normalisation), zero_variance, excluded, tuple(keys))


def _as_delivered(episode: Episode) -> Episode:
    """The episode as its agent knew it: an answer that it never had earns nothing, and is nobody's turn."""
    calls = delivered_calls(episode)
    return episode if len(calls) == len(episode.calls) else replace(episode, calls=calls)


def _select(episode: Episode, advantages: ByCall) -> tuple[list[int], int]:
    """Spans of the episode to train, and how many tokens of credited calls cannot be."""
    trained: list[int] = []
    excluded = 0
    for index, span in enumerate(episode.tree.spans):
        if span.sampled is None or span.sampled.call not in advantages:
            continue
        if span.sampled.constrained or span.sampled.temperature == 0:
            excluded += len(span.ids)
        else:
            trained.append(index)
    return trained, excluded


def _completions(
    episode: Episode, spans: Sequence[tuple[int, int]], advantages: ByCall, path: int, number: int
) -> list[Completion]:
    completions: list[Completion] = []
    for index, start in spans:
        span = episode.tree.spans[index]
        if span.sampled is not None:
            advantage = advantages[span.sampled.call]
            completions.append(Completion(span.ids, span.sampled, path, start, number, advantage))
    return completions
