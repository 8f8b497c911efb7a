"""From groups of episodes to the batch that a step trains on.

Every rewarded episode of a group that the filter keeps gives paths, runs of token ids from the root of its token tree,
and one loss term for each sampled token on them that is trained. Left out are tokens sampled under a grammar or
greedily, calls that no reward reaches, calls whose answers the agent never had, and given tokens that no trained token
follows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from agentrl.algorithms.contract import Algorithm, ComparedGroup, Membership
from agentrl.learner.contract import Targets, TrainBatch
from agentrl.rollout.contract import Episode, Group, delivered_calls
from agentrl.tokens.contract import Sampled, TokenTree

if TYPE_CHECKING:
    from agentrl.algorithms.contract import ByCall
    from agentrl.learner.contract import Ints

__all__ = ["Path", "build_batch", "compare", "cover"]


def build_batch(groups: Sequence[Group], algorithm: Algorithm) -> tuple[TrainBatch, dict[str, float]]:
    """Return the batch of a step's ``groups``, and counts of what did not enter it, by metric name.

    The counts are ``groups/zero_variance`` (groups in which no call is better than another, whether they enter or
    not), ``groups/filtered`` (groups that the filter left out) and ``tokens/excluded`` (tokens of calls with an
    advantage that were not drawn from the policy alone). Raises ``ValueError`` for a completion without a prompt: no
    position predicts its first token.
    """
    compared = [compare(group, algorithm) for group in groups]
    kept = [group for group, enters in zip(compared, algorithm.filter(compared), strict=True) if enters]
    paths: list[Ints] = []
    labels: list[str] = []
    samples: list[_Sample] = []
    episodes = excluded = 0
    for group in kept:
        for episode, advantages in zip(_rewarded(group.group), group.advantages, strict=True):
            trained, left_out = _trained_spans(episode, advantages)
            for path in cover(episode.tree, trained):
                samples += _samples(episode, path, advantages, len(paths), episodes)
                paths.append(path.ids)
                labels.append(f"episode {episode.key}")
            excluded += left_out
            episodes += 1
    counts = {
        "groups/zero_variance": float(sum(not group.tells_apart for group in compared)),
        "groups/filtered": float(len(compared) - len(kept)),
        "tokens/excluded": float(excluded),
    }
    return _tabulate(samples, algorithm, paths, labels), counts


def compare(group: Group, algorithm: Algorithm) -> ComparedGroup:
    """Return what the rewarded episodes of ``group`` earned and how they compare, as ``algorithm`` has it."""
    returns = [algorithm.credit(_as_delivered(episode)) for episode in _rewarded(group)]
    advantages = algorithm.advantage(returns)
    tells_apart = any(value for by_call in advantages for value in by_call.values())
    return ComparedGroup(group, returns, advantages, tells_apart)


def _rewarded(group: Group) -> list[Episode]:
    """Rejected and failed episodes have no part in their group's comparison."""
    return [episode for episode in group.episodes if episode.outcome == "rewarded"]


def _as_delivered(episode: Episode) -> Episode:
    """The episode as its agent knew it: an answer that the agent never had earns nothing."""
    calls = delivered_calls(episode)
    return episode if len(calls) == len(episode.calls) else replace(episode, calls=calls)


def _trained_spans(episode: Episode, advantages: ByCall) -> tuple[list[int], int]:
    """Indices of the spans to train, and how many tokens of calls with an advantage cannot be trained."""
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


@dataclass(frozen=True, slots=True)
class Path:
    """Ids from the root of a token tree, and the spans whose loss terms lie on them."""

    ids: Ints
    """Without the last sampled token: nothing follows it, so no logits are needed after it."""
    spans: tuple[tuple[int, int], ...]
    """Index of each span, and how many ids come before its first token."""


def cover(tree: TokenTree, trained: Collection[int]) -> list[Path]:
    """Return the fewest paths such that each span of ``trained`` lies on exactly one of them.

    A span lies there whole but for its last token. A path that continues a conversation holds the spans of its earlier
    turns too, so there is one path for each end of a conversation and not one for each call. Given tokens that no
    trained span follows are on none.
    """
    waiting = set(trained)
    paths: list[Path] = []
    for leaf in sorted(trained, reverse=True):  # children before their parents
        if leaf in waiting:
            path = _path(tree, leaf, waiting)
            waiting.difference_update(span for span, _ in path.spans)
            paths.append(path)
    return paths


def _path(tree: TokenTree, leaf: int, waiting: Collection[int]) -> Path:
    pieces: list[tuple[int, ...]] = []
    held: list[tuple[int, int]] = []
    span, stop = leaf, len(tree.spans[leaf].ids) - 1
    while span >= 0:
        ids = tree.spans[span].ids
        pieces.append(ids[:stop])
        if span in waiting and stop >= len(ids) - 1:
            held.append((span, len(pieces)))
        span, stop = tree.spans[span].parent, tree.spans[span].fork
    pieces.reverse()
    starts = np.cumsum([0, *map(len, pieces)])
    ids_on_path = np.array([token for piece in pieces for token in piece], dtype=np.int64)
    return Path(ids_on_path, tuple((span, int(starts[len(pieces) - back])) for span, back in held))


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sampled span on its path, with what its call is worth."""

    ids: tuple[int, ...]
    sampled: Sampled
    path: int
    start: int
    """How many ids come before its first token on the path."""
    episode: int
    advantage: float


def _samples(episode: Episode, path: Path, advantages: ByCall, index: int, number: int) -> list[_Sample]:
    """The spans of ``path``, which is path ``index`` of the batch and of its episode ``number``."""
    samples: list[_Sample] = []
    for span_index, start in path.spans:
        span = episode.tree.spans[span_index]
        if start < 1:
            raise ValueError(
                f"episode {episode.key} has a completion without a prompt: no position predicts its first token"
            )
        if span.sampled is not None:
            samples.append(_Sample(span.ids, span.sampled, index, start, number, advantages[span.sampled.call]))
    return samples


def _tabulate(
    samples: Sequence[_Sample], algorithm: Algorithm, paths: Sequence[Ints], labels: Sequence[str]
) -> TrainBatch:
    """The batch, with one loss term for each token of ``samples``, in their order."""
    lengths = np.array([len(sample.ids) for sample in samples], dtype=np.int64)
    count = int(lengths.sum())

    def spread(values: Iterable[float], dtype: type = np.float64) -> np.ndarray:
        return np.repeat(np.fromiter(values, dtype, len(samples)), lengths)

    def flat(values: Iterable[Iterable[float]], dtype: type = np.float64) -> np.ndarray:
        return np.fromiter(chain.from_iterable(values), dtype, count)

    within = np.arange(count) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    call = np.repeat(np.arange(len(samples)), lengths)
    episode = spread((sample.episode for sample in samples), np.int64)
    return TrainBatch(
        paths=tuple(paths),
        targets=Targets(
            path=spread((sample.path for sample in samples), np.int64),
            depth=spread((sample.start - 1 for sample in samples), np.int64) + within,
            token=flat((sample.ids for sample in samples), np.int64),
            temperature=spread(sample.sampled.temperature for sample in samples),
        ),
        logprob=flat(sample.sampled.logprobs for sample in samples),
        version=flat((sample.sampled.versions for sample in samples), np.int64),
        advantage=spread(sample.advantage for sample in samples),
        weight=algorithm.normalisation(Membership(episode, call)),
        call=call,
        labels=tuple(labels),
    )
