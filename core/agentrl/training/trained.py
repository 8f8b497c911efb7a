"""What a step made of the tokens of its episodes, as it is recorded: laid out as the policy sampled them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from agentrl.algorithms.account import TOKEN_FATES
from agentrl.learner.contract import TermScores
from agentrl.rollout.contract import Episode, Fate, Group
from agentrl.runs.contract import TokenFate, TrainedEpisode, TrainedTokens
from agentrl.training.columns import Prepared

__all__ = ["trained_episodes"]

_LEFT_OUT: TokenFate = "left_out"


def trained_episodes(
    step: int,
    prepared: Prepared,
    terms: TermScores,
    *,
    left_out: Iterable[tuple[Group, Sequence[Fate]]] = (),
    stale: Iterable[Group] = (),
) -> Iterator[TrainedEpisode]:
    """Yield what ``step`` made of every episode that it consumed.

    ``prepared`` is the batch that it trained, with its groups, and ``terms`` what the learner found of the terms.
    ``left_out`` are the groups that a filter left out before there was a batch, with the fates of their episodes, and
    ``stale`` those that were dropped because they were too old.
    """
    batch, tokens = prepared.batch, prepared.account.tokens
    columns = (batch.advantage, batch.weight, terms.logprob, terms.entropy, terms.importance)
    laid_out = zip(tokens.fates_by_episode(), *map(tokens.by_episode, columns), strict=True)
    episodes = (episode for group in prepared.groups for episode in group.episodes)
    fates = chain.from_iterable(prepared.account.fates)
    for episode, fate, (codes, *values) in zip(episodes, fates, laid_out, strict=True):
        told = tuple(TOKEN_FATES[code] for code in codes.tolist())
        yield TrainedEpisode(episode.key, fate, TrainedTokens(step, told, *(tuple(each.tolist()) for each in values)))
    for group, of_group in left_out:
        for episode, fate in zip(group.episodes, of_group, strict=True):
            yield _not_trained(step, episode, fate)
    for group in stale:
        for episode in group.episodes:
            yield _not_trained(step, episode, episode.fate or "stale")


def _not_trained(step: int, episode: Episode, fate: Fate) -> TrainedEpisode:
    count = sum(len(span.ids) for span in episode.tree.spans if span.sampled is not None)
    nothing = (float("nan"),) * count
    return TrainedEpisode(episode.key, fate, TrainedTokens(step, (_LEFT_OUT,) * count, *[nothing] * 5))
