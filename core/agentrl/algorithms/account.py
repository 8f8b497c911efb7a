"""The account of a batch: what became of every episode, and of every token that the policy sampled, of its groups."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from agentrl.rollout.contract import Episode, EpisodeKey, Fate
from agentrl.runs.contract import TokenFate

if TYPE_CHECKING:
    from agentrl.learner.contract import Bits, Floats, Ints

__all__ = ["TOKEN_FATES", "Account", "TokenAccount", "TokenFates"]

TOKEN_FATES: Final[tuple[TokenFate, ...]] = get_args(TokenFate)
"""The fate that each code stands for, by its index."""

_TRAINED, _CONSTRAINED, _STALE, _UNREWARDED, _LEFT_OUT = map(
    TOKEN_FATES.index, ("trained", "constrained", "stale", "unrewarded", "left_out")
)


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """What became of the sampled tokens of all episodes of a step's groups.

    The tokens are in the order of the groups, of their episodes, of the sampled spans in each tree, and of their ids.
    """

    fates: Bits
    """Shape (tokens,): the fate of each, as its index in ``TOKEN_FATES``."""
    lengths: Ints
    """Shape (episodes,): how many sampled tokens each episode has."""
    terms: Ints
    """Shape (terms,): which of the tokens each loss term of the batch is of."""

    def laid_out(self, values: Floats) -> Floats:
        """A value for each token, from ``values``, one for each term of the batch; NaN where a token has no term."""
        laid_out = np.full(len(self.fates), np.nan)
        laid_out[self.terms] = values
        return laid_out


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the groups of which a batch was made."""

    counts: Mapping[str, float]
    """By metric name: ``groups/zero_variance`` (groups in which no call is better than another, whether they enter or
    not), ``groups/filtered`` (groups of which a filter left out everything), ``tokens/excluded`` (tokens of calls with
    an advantage that were not drawn from the policy alone) and ``tokens/stale`` (further ones that were too old)."""
    fates: tuple[tuple[Fate, ...], ...]
    """The fate of every episode, group by group, in the order given."""
    tokens: TokenAccount
    """The fate of every token that was sampled in them."""
    paths: tuple[EpisodeKey, ...] = ()
    """Which episode each path of the batch is of."""


class TokenFates:
    """Gathers the fates of sampled tokens, episode by episode, in the order of ``TokenAccount``."""

    def __init__(self) -> None:
        self._lengths: list[int] = []
        self._spans: list[int] = []
        self._codes: list[int] = []
        self._stale: list[Ints] = []
        self._count = 0

    def add(
        self, episode: Episode, rewarded: Container[str] | None = None, stale: Mapping[int, Ints] | None = None
    ) -> dict[int, int]:
        """Take in an ``episode``; returns, by the index of a sampled span, which token of all is its first.

        ``rewarded`` are the calls that a reward reaches, ``None`` where the episode is not in the batch. ``stale`` has
        the tokens of them that are too old, as indices in their spans, by the index of the span. Any further ones that
        get no term were not drawn from the policy alone.
        """
        firsts, first = {}, self._count
        for index, span in enumerate(episode.tree.spans):
            if span.sampled is not None:
                firsts[index] = self._count
                self._count += len(span.ids)
                self._spans.append(len(span.ids))
                reached = None if rewarded is None else span.sampled.call in rewarded
                self._codes.append(_LEFT_OUT if reached is None else _CONSTRAINED if reached else _UNREWARDED)
        self._lengths.append(self._count - first)
        if rewarded is not None and stale:
            self._stale += [firsts[span] + indices for span, indices in stale.items()]
        return firsts

    def account(self, terms: Ints) -> TokenAccount:
        """The account of all of them; ``terms`` are the tokens that have a loss term, in its order."""
        fates = np.repeat(np.array(self._codes, dtype=np.uint8), np.array(self._spans, dtype=np.int64))
        if self._stale:
            fates[np.concatenate(self._stale)] = _STALE
        fates[terms] = _TRAINED
        return TokenAccount(fates, np.array(self._lengths, dtype=np.int64), terms)
