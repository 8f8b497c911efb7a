"""From groups of episodes to the batch that a step trains on.

Every rewarded episode of a group that the filter keeps gives paths, runs of token ids from the root of its token tree,
and one loss term for each sampled token on them that is trained. Left out are tokens that a grammar constrained or that
were sampled greedily, calls that no reward reaches, calls whose answers the agent never had, and given tokens that no
trained token follows.

A grammar that forbids nothing at a position, as that of a strict tool does before it is called, leaves the token to the
policy alone. With ``choices`` those are trained too where a grammar left more than one token to choose from, under the
distribution of the allowed tokens, with which they were sampled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import numpy as np

from agentrl.algorithms.contract import Algorithm, ComparedGroup, Membership
from agentrl.learner.contract import Targets, TrainBatch
from agentrl.rollout.contract import Episode, Group, delivered_calls
from agentrl.tokens.contract import Sampled, TokenTree

if TYPE_CHECKING:
    from agentrl.algorithms.contract import ByCall
    from agentrl.inference.contract import Grammar
    from agentrl.learner.contract import Bits, Ints

__all__ = ["AllowedTokens", "Path", "build_batch", "compare", "cover", "wholly_excluded"]


class AllowedTokens(Protocol):
    """Tells which tokens a grammar allowed at each position of a completion."""

    @property
    def vocabulary(self) -> int:
        """How many ids the model knows."""
        ...

    @property
    def everything(self) -> Bits:
        """The mask of a position at which nothing was forbidden, shape (⌈vocabulary / 8⌉,); see ``Targets.masks``."""
        ...

    def masks(self, grammar: Grammar, stop_ids: Sequence[int], ids: Sequence[int]) -> Bits | None:
        """Return the masks of the positions of a completion ``ids``, shape (ids, ⌈vocabulary / 8⌉).

        ``stop_ids`` could end it. ``None`` where the grammar does not allow ``ids``, or cannot be read here.
        """
        ...


def build_batch(
    groups: Sequence[Group], algorithm: Algorithm, *, allowed: AllowedTokens | None = None, choices: bool = False
) -> tuple[TrainBatch, dict[str, float]]:
    """Return the batch of a step's ``groups``, and counts of what did not enter it, by metric name.

    ``allowed`` tells what grammars allowed; without it no token of a call under one is trained. ``choices`` says
    whether those are that were chosen from several that were allowed.

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
            trained, left_out = _trained_spans(episode, advantages, allowed, choices)
            for path in cover(episode.tree, trained):
                samples += _samples(episode, path, trained, advantages, len(paths), episodes)
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


def wholly_excluded(
    groups: Sequence[Group], *, allowed: AllowedTokens | None = None, choices: bool = False
) -> Episode | None:
    """Return the first rewarded episode that could be trained, were not all its tokens left out because of grammars.

    Arguments as of ``build_batch``; ``None`` where there is no such episode.
    """
    for episode in chain.from_iterable(map(_rewarded, groups)):
        spans = [(span.ids, span.sampled) for span in episode.tree.spans if span.sampled is not None]
        constrained = [(ids, sampled) for ids, sampled in spans if sampled.constrained]
        if not spans or len(constrained) < len(spans):
            continue
        if all(_kept(ids, sampled, allowed, choices) is None for ids, sampled in constrained):
            return episode
    return None


@dataclass(frozen=True, slots=True)
class _Kept:
    """The tokens of a span that are trained."""

    at: Ints
    """Their indices in the span."""
    masks: Bits | None = None
    """What was allowed at each of them; ``None`` where every token was."""


def _trained_spans(
    episode: Episode, advantages: ByCall, allowed: AllowedTokens | None, choices: bool
) -> tuple[dict[int, _Kept], int]:
    """What to train of each span, by index, and how many tokens of calls with an advantage cannot be trained."""
    trained: dict[int, _Kept] = {}
    excluded = 0
    for index, span in enumerate(episode.tree.spans):
        if span.sampled is None or span.sampled.call not in advantages:
            continue
        kept = _kept(span.ids, span.sampled, allowed, choices)
        excluded += len(span.ids)
        if kept is not None:
            trained[index] = kept
            excluded -= len(kept.at)
    return trained, excluded


def _kept(ids: tuple[int, ...], sampled: Sampled, allowed: AllowedTokens | None, choices: bool) -> _Kept | None:
    """What of a span is trained; ``None`` for nothing."""
    if sampled.temperature == 0:
        return None
    if not sampled.constrained:
        return _Kept(np.arange(len(ids)))
    if allowed is None or sampled.grammar is None:
        return None
    masks = allowed.masks(sampled.grammar, sampled.stop_ids, ids)
    if masks is None:
        return None
    if choices:
        at = np.flatnonzero(np.unpackbits(masks, axis=1).sum(axis=1) > 1)
    else:
        at = np.flatnonzero((masks & allowed.everything == allowed.everything).all(axis=1))
    if not len(at):
        return None
    whole = not choices and np.unpackbits(allowed.everything).sum() == allowed.vocabulary
    return _Kept(at, None if whole else masks[at])


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
    kept: _Kept
    path: int
    start: int
    """How many ids come before its first token on the path."""
    episode: int
    advantage: float

    def of(self, values: Sequence[float]) -> Iterable[float]:
        """``values``, one for each token of the span, of the tokens that are trained."""
        return values if len(self.kept.at) == len(values) else (values[index] for index in self.kept.at)


def _samples(
    episode: Episode, path: Path, trained: Mapping[int, _Kept], advantages: ByCall, index: int, number: int
) -> list[_Sample]:
    """The spans of ``path``, which is path ``index`` of the batch and of its episode ``number``."""
    samples: list[_Sample] = []
    for span_index, start in path.spans:
        span = episode.tree.spans[span_index]
        if start < 1:
            raise ValueError(
                f"episode {episode.key} has a completion without a prompt: no position predicts its first token"
            )
        if span.sampled is not None:
            advantage = advantages[span.sampled.call]
            samples.append(_Sample(span.ids, span.sampled, trained[span_index], index, start, number, advantage))
    return samples


def _tabulate(
    samples: Sequence[_Sample], algorithm: Algorithm, paths: Sequence[Ints], labels: Sequence[str]
) -> TrainBatch:
    """The batch, with one loss term for each trained token of ``samples``, in their order."""
    lengths = np.array([len(sample.kept.at) for sample in samples], dtype=np.int64)
    count = int(lengths.sum())

    def spread(values: Iterable[float], dtype: type = np.float64) -> np.ndarray:
        return np.repeat(np.fromiter(values, dtype, len(samples)), lengths)

    def flat(values: Iterable[Iterable[float]], dtype: type = np.float64) -> np.ndarray:
        return np.fromiter(chain.from_iterable(values), dtype, count)

    within = np.concatenate([sample.kept.at for sample in samples]) if samples else np.arange(0)
    masks, mask = _masks(samples)
    call = np.repeat(np.arange(len(samples)), lengths)
    episode = spread((sample.episode for sample in samples), np.int64)
    return TrainBatch(
        paths=tuple(paths),
        targets=Targets(
            path=spread((sample.path for sample in samples), np.int64),
            depth=spread((sample.start - 1 for sample in samples), np.int64) + within,
            token=flat((sample.of(sample.ids) for sample in samples), np.int64),
            temperature=spread(sample.sampled.temperature for sample in samples),
            masks=masks,
            mask=mask,
        ),
        logprob=flat(sample.of(sample.sampled.logprobs) for sample in samples),
        version=flat((sample.of(sample.sampled.versions) for sample in samples), np.int64),
        advantage=spread(sample.advantage for sample in samples),
        weight=algorithm.normalisation(Membership(episode, call)),
        call=call,
        labels=tuple(labels),
    )


def _masks(samples: Sequence[_Sample]) -> tuple[Bits | None, Ints | None]:
    """The columns ``masks`` and ``mask`` of the targets: equal masks once, and -1 where there is none."""
    rows = [sample.kept.masks for sample in samples if sample.kept.masks is not None]
    if not rows:
        return None, None
    masks, found = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    masked = np.concatenate([np.full(len(sample.kept.at), sample.kept.masks is not None) for sample in samples])
    mask = np.full(len(masked), -1, dtype=np.int64)
    mask[masked] = found.reshape(-1)
    return masks, mask
