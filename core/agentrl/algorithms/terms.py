"""Loss terms: one for every sampled token that is trained, held in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from agentrl.algorithms.contract import Membership
from agentrl.tokens.contract import Sampled

if TYPE_CHECKING:
    from agentrl.algorithms.contract import Floats, Ints, Normalisation

__all__ = ["Completion", "Terms", "tabulate"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled span on its path, with what its call is worth."""

    ids: tuple[int, ...]
    sampled: Sampled
    path: int
    start: int
    """How many ids come before its first token on the path; at least 1."""
    episode: int
    advantage: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss terms of a step, ``n`` in each column: a sampled token, and the position whose logits predict it."""

    path: Ints
    """Which path the position lies on."""
    depth: Ints
    """How many tokens come before the position on its path; the sampled token follows the position."""
    token: Ints
    logprob: Floats
    """Natural log-probability that the token was sampled with, at ``temperature``."""
    temperature: Floats
    version: Ints
    advantage: Floats
    weight: Floats
    """Share of the term in the loss of the step."""
    episode: Ints
    call: Ints

    def __len__(self) -> int:
        return len(self.token)


def tabulate(completions: Sequence[Completion], normalisation: Normalisation) -> Terms:
    """The loss terms of all ``completions``, weighed by ``normalisation``.

    Raises ``ValueError`` for a completion with nothing before it, since no logits predict its first token.
    """
    if any(completion.start < 1 for completion in completions):
        raise ValueError("a completion without a prompt has no logits that predict its first token")
    lengths = np.array([len(completion.ids) for completion in completions], dtype=np.int64)
    count = int(lengths.sum())

    def spread(values: Iterable[float]) -> Floats:
        return np.repeat(np.fromiter(values, np.float64, len(completions)), lengths)

    def flat(values: Iterable[Iterable[float]]) -> Floats:
        return np.fromiter(chain.from_iterable(values), np.float64, count)

    def number(values: Floats) -> Ints:
        return values.astype(np.int64)

    within = np.arange(count) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    episode = number(spread(completion.episode for completion in completions))
    call = np.repeat(np.arange(len(completions)), lengths)
    return Terms(
        path=number(spread(completion.path for completion in completions)),
        depth=number(spread(completion.start - 1 for completion in completions)) + within,
        token=number(flat(completion.ids for completion in completions)),
        logprob=flat(completion.sampled.logprobs for completion in completions),
        temperature=spread(completion.sampled.temperature for completion in completions),
        version=number(flat(completion.sampled.versions for completion in completions)),
        advantage=spread(completion.advantage for completion in completions),
        weight=normalisation(Membership(episode, call)),
        episode=episode,
        call=call,
    )
