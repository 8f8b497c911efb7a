"""How the logprobs of one text have moved between two updates: the server's beside the learner's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

__all__ = ["Movement", "Scores", "movement"]

_MOVED = 1e-5
_UNMOVED = 1e-6
"""Mean movements, in nats, that are one, and that are none."""
_HALF = 0.5
"""A server that computes with all of the new weights moves as the learner does, give or take rounding."""
_SURE = 4.0
_NOISE = 4.0
"""From how many times the rounding on a movement is too large to be hidden by it."""


class Scores(NamedTuple):
    """Logprobs of one text, in nats."""

    server: Sequence[float]
    learner: Sequence[float]


@dataclass(frozen=True, slots=True)
class Movement:
    """Means over the text's tokens, in nats."""

    learner: float
    server: float
    unlike: float
    """By how much the two moves differ."""
    noise: float
    """By how much server and learner differed before."""
    share: float
    """How much of the learner's movement the server has made: the slope of a line through 0."""
    lack: float
    """By how many standard errors that is less than all.

    Were it all, what is between the moves would be rounding, as often up as down: the sum of its products with the
    movement, over the root of the sum of their squares, is then seldom more than a few, whatever its size at a token.
    """

    @property
    def is_missing(self) -> bool:
        """Whether the server has stayed where it was."""
        return self.learner > _MOVED and self.server <= _UNMOVED

    @property
    def is_partial(self) -> bool:
        """Whether the server has followed in part, or not at all, which rounding does not explain."""
        is_short = self.share < _HALF and self.lack > _SURE
        return self.learner > _MOVED and (is_short or self.is_other)

    @property
    def is_other(self) -> bool:
        """Whether the server has moved otherwise, by more than any rounding hides."""
        return self.learner > _NOISE * self.noise and self.unlike > _HALF * self.learner


def movement(before: Scores, now: Scores) -> Movement:
    """From what both said of a text before to what they say now."""
    theirs, ours = _moves(before.server, now.server), _moves(before.learner, now.learner)
    along = sum(their * our for their, our in zip(theirs, ours, strict=True))
    power = sum(our * our for our in ours)
    lacks = [(our - their) * our for their, our in zip(theirs, ours, strict=True)]
    spread = math.sqrt(sum(lack * lack for lack in lacks))
    return Movement(
        learner=fmean(map(abs, ours)),
        server=fmean(map(abs, theirs)),
        unlike=fmean(map(abs, _moves(theirs, ours))),
        noise=fmean(map(abs, _moves(*before))),
        share=along / power if power else 1.0,
        lack=sum(lacks) / spread if spread else 0.0,
    )


def _moves(before: Sequence[float], now: Sequence[float]) -> list[float]:
    return [new - old for old, new in zip(before, now, strict=True)]
