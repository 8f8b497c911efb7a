"""Every token of an episode's tree, with all that is known of it, a page of them at a time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from agentrl.runs.contract import TokenFate, TrainedTokens
from agentrl.tokens.contract import Span, TokenTree
from agentrl.view.pieces import Pieces

__all__ = ["COLOURS", "REASONS", "Alternative", "Colour", "SpanOutline", "Token", "TokenView"]

Colour = Literal["logprob", "advantage", "entropy", "version", "fate"]
"""What the colour of a token tells."""
COLOURS: Sequence[Colour] = get_args(Colour)

REASONS: Mapping[TokenFate, str] = {
    "trained": "trained",
    "constrained": "not trained: a grammar or greedy sampling chose it",
    "stale": "not trained: older than rollout.max_staleness allows",
    "unrewarded": "not trained: no reward reaches its call, or its answer was not delivered",
    "left_out": "not trained: its episode or group is not in the batch",
}
"""What became of a sampled token, in words."""

_LIKELY = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01)
"""Probabilities at which the colour of a log-probability changes."""
_ENTROPIES = (0.01, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0)
"""Entropies, in nats, at which the colour of an entropy changes."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """What could have stood in the place of a token."""

    id: int
    text: str | None
    logprob: float

    @property
    def probability(self) -> float:
        """By the distribution that was sampled from."""
        return math.exp(self.logprob)


@dataclass(frozen=True, slots=True)
class Token:
    """One token and what is known of it. A value that there is not is ``None``."""

    place: int
    """Its number among all tokens of the tree, which are in the order of the spans."""
    depth: int
    """How many tokens come before it in its conversation."""
    span: int
    id: int
    text: str | None
    """Its text; of a token that is no whole character its bytes in hexadecimal, and ``None`` where neither is known."""
    is_whole: bool
    """Whether its bytes are whole characters."""
    is_control: bool
    is_sampled: bool
    logprob: float | None = None
    """Of the distribution that it was sampled from, in nats."""
    version: int | None = None
    fate: TokenFate | None = None
    advantage: float | None = None
    weight: float | None = None
    learner_logprob: float | None = None
    entropy: float | None = None
    importance: float | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def probability(self) -> float | None:
        """By the distribution that it was sampled from."""
        return None if self.logprob is None else math.exp(self.logprob)

    def shade(self, colour: Colour) -> str:
        """The class of its colour: a letter, and how strong it is, from 0 to 8; empty where there is no value."""
        match colour:
            case "logprob":
                return "" if self.logprob is None else f"p{sum(math.exp(self.logprob) < each for each in _LIKELY)}"
            case "entropy":
                return "" if self.entropy is None else f"p{sum(self.entropy >= each for each in _ENTROPIES)}"
            case "advantage":
                if self.advantage is None or self.advantage == 0:
                    return ""
                return f"{'g' if self.advantage > 0 else 'p'}{min(8, 1 + round(abs(self.advantage) * 3))}"
            case "version":
                return "" if self.version is None else f"v{self.version % 8 + 1}"
            case "fate":
                return "" if self.fate is None else f"fate-{self.fate}"


@dataclass(frozen=True, slots=True)
class SpanOutline:
    """A span of the tree as its drawing shows it."""

    index: int
    parent: int
    depth: int
    """How many tokens come before it."""
    size: int
    first: int
    """The ``place`` of its first token."""
    lane: int
    """The row of its bar: one that goes on where its parent ends is in the same row, and each fork begins another."""
    call: str | None
    """The response id of the call that sampled it; ``None`` for given tokens."""
    is_constrained: bool


class TokenView:
    """The tokens of one tree, of which only those are made that are asked for."""

    def __init__(self, tree: TokenTree, trained: TrainedTokens | None, pieces: Pieces) -> None:
        self._spans = tree.spans
        self._pieces = pieces
        self._trained = trained
        self._ends = list(accumulate(len(span.ids) for span in self._spans))
        self._sampled_before = [0, *accumulate(len(span.ids) if span.sampled else 0 for span in self._spans)]
        self._depths: list[int] = []
        for span in self._spans:
            self._depths.append(span.fork + (self._depths[span.parent] if span.parent >= 0 else 0))

    def __len__(self) -> int:
        """Return how many tokens the tree has."""
        return self._ends[-1] if self._ends else 0

    @property
    def span_count(self) -> int:
        """How many spans the tree has."""
        return len(self._spans)

    def first_sampled(self) -> int:
        """The place of the first token that the policy sampled; 0 where there is none."""
        return next((self._start(index) for index, span in enumerate(self._spans) if span.sampled), 0)

    def page(self, start: int, count: int) -> list[Token]:
        """At most ``count`` tokens from the place ``start`` on."""
        return [*self._tokens(max(0, start), min(len(self), start + count))]

    def outline(self, count: int) -> list[SpanOutline]:
        """The first ``count`` spans."""
        lanes: list[int] = []
        continued: set[int] = set()
        found = []
        for index, span in enumerate(self._spans[:count]):
            goes_on = span.parent < 0 or span.fork == len(self._spans[span.parent].ids)
            if goes_on and span.parent not in continued:
                continued.add(span.parent)
                lanes.append(lanes[span.parent] if span.parent >= 0 else 0)
            else:
                lanes.append(max(lanes) + 1)
            sampled = span.sampled
            found.append(
                SpanOutline(
                    *(index, span.parent, self._depths[index], len(span.ids), self._start(index), lanes[-1]),
                    call=sampled.call if sampled else None,
                    is_constrained=bool(sampled and sampled.constrained),
                )
            )
        return found

    def _start(self, index: int) -> int:
        return self._ends[index] - len(self._spans[index].ids)

    def _tokens(self, start: int, end: int) -> Iterator[Token]:
        index = bisect_right(self._ends, start)
        while start < end:
            span, first = self._spans[index], self._start(index)
            for offset in range(start - first, min(end - first, len(span.ids))):
                yield self._token(index, span, offset, first + offset)
            start, index = self._ends[index], index + 1

    def _token(self, index: int, span: Span, offset: int, place: int) -> Token:
        text, is_whole = self._text(span.ids[offset])
        given = (place, self._depths[index] + offset, index, span.ids[offset], text, is_whole)
        is_control, sampled = self._pieces.is_control(span.ids[offset]), span.sampled
        if sampled is None:
            return Token(*given, is_control=is_control, is_sampled=False)
        token = Token(
            *given,
            is_control=is_control,
            is_sampled=True,
            logprob=sampled.logprobs[offset],
            version=sampled.versions[offset],
            alternatives=self._alternatives(sampled.alternatives[offset] if sampled.alternatives else ()),
        )
        return token if self._trained is None else _with(token, self._trained, self._sampled_before[index] + offset)

    def _text(self, id: int) -> tuple[str | None, bool]:
        piece = self._pieces.bytes_of(id)
        if piece is None:
            return None, True
        try:
            return piece.decode(), True
        except UnicodeDecodeError:
            return piece.hex(" ").upper(), False

    def _alternatives(self, pairs: Sequence[tuple[int, float]]) -> tuple[Alternative, ...]:
        return tuple(Alternative(id, self._text(id)[0], logprob) for id, logprob in pairs)


def _with(token: Token, trained: TrainedTokens, ordinal: int) -> Token:
    from dataclasses import replace

    return replace(
        token,
        fate=trained.fates[ordinal],
        advantage=_known(trained.advantages[ordinal]),
        weight=_known(trained.weights[ordinal]),
        learner_logprob=_known(trained.logprobs[ordinal]),
        entropy=_known(trained.entropies[ordinal]),
        importance=_known(trained.importances[ordinal]),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
