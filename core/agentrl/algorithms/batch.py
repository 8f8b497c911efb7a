"""From groups of episodes to the batch that a step trains on.

Every rewarded episode that the filters keep gives paths, runs of token ids from the root of its token tree,
and one loss term for each sampled token on them that is trained. Left out are tokens that a grammar constrained or that
were sampled greedily, tokens older than the bound of staleness, calls that no reward reaches, calls whose answers the
agent never had, given tokens that no trained token follows, and episodes that are longer than a pass. What became of
every single episode is told beside the batch.

A grammar that forbids nothing at a position, as that of a strict tool does before it is called, leaves the token to the
policy alone. With ``choices`` those are trained too where a grammar left more than one token to choose from, under the
distribution of the allowed tokens, with which they were sampled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from agentrl.algorithms.account import Account, TokenFates
from agentrl.algorithms.contract import (
    Advantage,
    Algorithm,
    ComparedGroup,
    Membership,
    Normalisation,
    StepAdvantage,
    TokenAdvantage,
)
from agentrl.algorithms.filters import entering
from agentrl.learner.contract import Targets, TrainBatch
from agentrl.rollout.contract import Episode, EpisodeKey, Fate, Group, delivered_calls
from agentrl.tokens.contract import Sampled, TokenTree

if TYPE_CHECKING:
    import numpy.typing as npt

    from agentrl.algorithms.contract import ByCall
    from agentrl.inference.contract import Grammar
    from agentrl.learner.contract import Bits, Floats, Ints

    Bools = npt.NDArray[np.bool_]

__all__ = [
    "AllowedTokens",
    "Path",
    "build_batch",
    "compare",
    "compare_step",
    "cover",
    "fates_left_out",
    "qualifies",
    "wholly_excluded",
]


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
    groups: Sequence[Group],
    algorithm: Algorithm,
    *,
    allowed: AllowedTokens | None = None,
    choices: bool = False,
    oldest: int | None = None,
    longest: int | None = None,
    updates: int = 1,
) -> tuple[TrainBatch, Account]:
    """Return the batch of a step's ``groups``, and what became of each of their episodes.

    ``allowed`` tells what grammars allowed; without it no token of a call under one is trained. ``choices`` says
    whether those are that were chosen from several that were allowed. Tokens of policy versions below ``oldest`` have
    no loss terms; the others of their episode do, with its advantage. An episode of which a single path is longer than
    ``longest`` tokens has none at all, since a path is not cut; its reward counts in its group as any other does.
    ``None`` bounds nothing. The batch makes ``updates`` updates, each of the same number of episodes, to within one,
    that follow each other in their order; fewer where there are fewer episodes. Raises ``ValueError`` for a completion
    without a prompt: no position predicts its first token.
    """
    keeping = _Keeping(allowed, choices, oldest, longest, isinstance(algorithm.advantage, TokenAdvantage))
    compared = compare_step(groups, algorithm)
    enters = entering(algorithm.filter, compared)
    paths: list[Ints] = []
    labels: list[str] = []
    keys: list[EpisodeKey] = []
    samples: list[_Sample] = []
    fates: list[tuple[Fate, ...]] = []
    tokens = TokenFates()
    episodes = excluded = stale = 0
    for group, entered in zip(compared, enters, strict=True):
        of_group: list[Fate] = []
        advantages = iter(zip(group.advantages, entered or (False,) * len(group.advantages), strict=True))
        for episode in group.group.episodes:
            if episode.outcome != "rewarded":
                of_group.append(episode.fate or episode.outcome)
                tokens.add(episode)
                continue
            by_call, enters_itself = next(advantages)
            selection = keeping.of(episode, by_call)
            is_in = enters_itself and selection.fate != "over_long"
            firsts = tokens.add(episode, by_call if is_in else None, selection.too_old)
            if enters_itself:
                for path in cover(episode.tree, selection.spans):
                    samples += _samples(episode, path, selection, len(paths), episodes, firsts)
                    paths.append(path.ids)
                    labels.append(f"episode {episode.key}")
                    keys.append(episode.key)
                excluded += selection.excluded
                stale += sum(map(len, selection.too_old.values()))
                episodes += 1
            kept = enters_itself or selection.fate == "over_long"
            of_group.append(selection.fate if kept else _fate_of_filtered(group))
        fates.append(tuple(of_group))
    counts = {
        "groups/zero_variance": float(sum(not group.tells_apart for group in compared)),
        "groups/filtered": float(enters.count(None)),
        "tokens/excluded": float(excluded),
        "tokens/stale": float(stale),
    }
    batch, within = _tabulate(samples, algorithm, paths, labels, updates)
    terms = np.array([sample.first for sample in samples], dtype=np.int64)[batch.call] + within
    return batch, Account(counts, tuple(fates), tokens.account(terms), tuple(keys))


def compare(group: Group, algorithm: Algorithm) -> ComparedGroup:
    """Return what the rewarded episodes of ``group`` earned and how they compare, as ``algorithm`` has it."""
    return compare_step([group], algorithm)[0]


def compare_step(groups: Sequence[Group], algorithm: Algorithm) -> list[ComparedGroup]:
    """As ``compare``, for the groups of a step, which an advantage may compare with each other."""
    advantage = algorithm.advantage
    returns = [[algorithm.credit(_shaped(episode, algorithm)) for episode in _rewarded(group)] for group in groups]
    of_step = advantage.of_step(returns) if isinstance(advantage, StepAdvantage) else map(advantage, returns)
    return [
        ComparedGroup(group, earned, advantages, _tells_apart(advantage, earned, advantages))
        for group, earned, advantages in zip(groups, returns, of_step, strict=True)
    ]


def _tells_apart(advantage: Advantage, earned: Sequence[ByCall], advantages: Sequence[ByCall]) -> bool:
    """Whether the rewarded episodes of a group differ; a single one, which nothing compares, counts as different."""
    if not isinstance(advantage, TokenAdvantage):
        return any(value for by_call in advantages for value in by_call.values())
    values = [value for by_call in earned for value in by_call.values()]
    if not values or len(earned) == 1:
        return bool(values)
    return not math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)


def qualifies(group: Group, algorithm: Algorithm) -> bool:
    """Whether the filters of ``algorithm`` would let an episode of ``group`` enter a batch."""
    return entering(algorithm.filter, [compare(group, algorithm)])[0] is not None


def fates_left_out(group: Group, algorithm: Algorithm) -> tuple[Fate, ...]:
    """The fate of every episode of a ``group`` that does not qualify, and that another was rolled out in place of."""
    fate = _fate_of_filtered(compare(group, algorithm))
    return tuple(episode.fate or fate for episode in group.episodes)


def _fate_of_filtered(group: ComparedGroup) -> Fate:
    """What becomes of an episode that a filter leaves out."""
    return "filtered" if group.tells_apart else "without_difference"


def _rewarded(group: Group) -> list[Episode]:
    """Rejected and failed episodes have no part in their group's comparison."""
    return [episode for episode in group.episodes if episode.outcome == "rewarded"]


def _shaped(episode: Episode, algorithm: Algorithm) -> Episode:
    """The episode as its agent knew it, with the rewards that are trained on."""
    shaped = _as_delivered(episode)
    for shaping in algorithm.shaping:
        shaped = shaping(shaped)
    return shaped


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
        if not any(len(_kept(ids, sampled, allowed, choices).at) for ids, sampled in constrained):
            return episode
    return None


@dataclass(frozen=True, slots=True)
class _Kept:
    """The tokens of a span that are trained."""

    at: Ints
    """Their indices in the span."""
    masks: Bits | None = None
    """What was allowed at each of them; ``None`` where every token was."""

    def where(self, chosen: Bools) -> _Kept:
        """Those of them that are ``chosen``."""
        return _Kept(self.at[chosen], None if self.masks is None else self.masks[chosen])


@dataclass(frozen=True, slots=True)
class _Selection:
    """What of an episode is trained."""

    fate: Fate
    """What becomes of the episode, where its group enters the batch."""
    advantages: ByCall
    spans: Mapping[int, _Kept] = field(default_factory=dict)
    """What to train of each span, by index."""
    excluded: int = 0
    """Tokens of calls with an advantage that were not drawn from the policy alone."""
    too_old: Mapping[int, Ints] = field(default_factory=dict)
    """Further ones that are too old, as indices in their spans, by the index of the span."""


@dataclass(frozen=True, slots=True)
class _Keeping:
    """The bounds of ``build_batch``, by which tokens are trained or left out."""

    allowed: AllowedTokens | None
    choices: bool
    oldest: int | None
    longest: int | None
    all: bool
    """Whether every episode is trained, whatever its advantages are."""

    def of(self, episode: Episode, advantages: ByCall) -> _Selection:
        """What of a rewarded ``episode`` is trained."""
        if episode.fate or (self.longest is not None and episode.tree.longest_path() > self.longest):
            return _Selection("over_long", advantages)
        spans: dict[int, _Kept] = {}
        too_old: dict[int, Ints] = {}
        excluded = 0
        fates: set[Fate] = {"without_tokens"}
        for index, span in enumerate(episode.tree.spans):
            if span.sampled is None or span.sampled.call not in advantages:
                continue
            kept = _kept(span.ids, span.sampled, self.allowed, self.choices)
            fresh = self._fresh(kept, span.sampled)
            drawn = len(kept.at)
            excluded += len(span.ids) - drawn
            if len(fresh.at) < drawn:
                too_old[index] = np.setdiff1d(kept.at, fresh.at, assume_unique=True)
            if len(fresh.at):
                spans[index] = fresh
            differs = self.all or advantages[span.sampled.call] != 0
            fates.add(_fate_of_span(differs, drawn=drawn > 0, fresh=len(fresh.at) > 0))
        return _Selection(min(fates, key=_MOST_TELLING.index), advantages, spans, excluded, too_old)

    def _fresh(self, kept: _Kept, sampled: Sampled) -> _Kept:
        """Those tokens of ``kept`` that are not too old."""
        if self.oldest is None or min(sampled.versions, default=self.oldest) >= self.oldest:
            return kept
        return kept.where(np.array(sampled.versions, dtype=np.int64)[kept.at] >= self.oldest)


_MOST_TELLING: Final[tuple[Fate, ...]] = ("trained", "stale", "constrained", "without_difference", "without_tokens")
"""Of the fates of an episode's completions the first of these is the episode's."""


def _fate_of_span(differs: bool, *, drawn: bool, fresh: bool) -> Fate:
    """What becomes of a completion.

    ``differs`` says whether it has an advantage other than 0, ``drawn`` whether the policy alone drew a token of it,
    and ``fresh`` whether such a token is new enough.
    """
    if not differs:
        return "without_difference"
    if not drawn:
        return "constrained"
    return "trained" if fresh else "stale"


def _kept(ids: tuple[int, ...], sampled: Sampled, allowed: AllowedTokens | None, choices: bool) -> _Kept:
    """What of a span is trained, whatever its age."""
    nothing = _Kept(np.arange(0))
    if sampled.temperature == 0:
        return nothing
    if not sampled.constrained:
        return _Kept(np.arange(len(ids)))
    if allowed is None or sampled.grammar is None:
        return nothing
    masks = allowed.masks(sampled.grammar, sampled.stop_ids, ids)
    if masks is None:
        return nothing
    if choices:
        at = np.flatnonzero(np.unpackbits(masks, axis=1).sum(axis=1) > 1)
    else:
        at = np.flatnonzero((masks & allowed.everything == allowed.everything).all(axis=1))
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
    first: int
    """Which of all sampled tokens of the step is the first of the span."""

    def of(self, values: Sequence[float]) -> Iterable[float]:
        """``values``, one for each token of the span, of the tokens that are trained."""
        return values if len(self.kept.at) == len(values) else (values[index] for index in self.kept.at)


def _samples(
    episode: Episode, path: Path, selection: _Selection, index: int, number: int, firsts: Mapping[int, int]
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
            advantage = selection.advantages[span.sampled.call]
            kept = selection.spans[span_index]
            first = firsts[span_index]
            samples.append(_Sample(span.ids, span.sampled, kept, index, start, number, advantage, first))
    return samples


def _tabulate(
    samples: Sequence[_Sample], algorithm: Algorithm, paths: Sequence[Ints], labels: Sequence[str], updates: int
) -> tuple[TrainBatch, Ints]:
    """The batch, a loss term for each trained token of ``samples`` in their order, and where in its span each is."""
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
    update = _updates(episode, updates)
    batch = TrainBatch(
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
        weight=_weights(algorithm.normalisation, episode, call, update),
        call=call,
        update=update,
        labels=tuple(labels),
    )
    return batch, within


def _updates(episode: Ints, updates: int) -> Ints | None:
    """Which update trains the terms of each episode; ``None`` where there is only one."""
    number_of, number = np.unique(episode, return_inverse=True)
    updates = min(updates, len(number_of))
    if updates < 2:
        return None
    of_episode = np.repeat(np.arange(updates), [len(each) for each in np.array_split(number_of, updates)])
    return of_episode[number.reshape(-1)]


def _weights(normalisation: Normalisation, episode: Ints, call: Ints, update: Ints | None) -> Floats:
    """The weight of each term in its update, which is normalised as a step of its own."""
    if update is None:
        return normalisation(Membership(episode, call))
    weight = np.empty(len(episode))
    for number in np.unique(update):
        terms = np.flatnonzero(update == number)
        episodes, calls = (np.unique(column[terms], return_inverse=True)[1] for column in (episode, call))
        weight[terms] = normalisation(Membership(episodes.reshape(-1), calls.reshape(-1)))
    return weight


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
