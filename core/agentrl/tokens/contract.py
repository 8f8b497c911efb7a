"""The token tree: every token of an episode, stored once, with its origin.

A span is a run of token ids, *given* (a prompt, a tool result) or *sampled* by the policy. A span starts at a
position inside another span, its parent: ``(parent, fork)`` says that it follows the first ``fork`` tokens of the
parent. Spans never change once they are added, and a history that departs from a span in its middle forks there.

Given tokens are shared wherever they repeat. A sampled span is always new, even if its tokens equal those of
another: two equal completions are two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from agentrl.inference.contract import Grammar

__all__ = ["ROOT", "Position", "Sampled", "Span", "TokenTree"]


class Position(NamedTuple):
    """A position in the tree: after the first ``offset`` tokens of the span with index ``span``."""

    span: int
    offset: int


ROOT = Position(-1, 0)
"""The position before the first token."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """How a span was sampled; ``logprobs`` and ``versions`` have one entry for each token."""

    call: str
    """The response id of the call whose completion it is."""
    logprobs: tuple[float, ...]
    """The log-probability of each token under the distribution that it was sampled from, at ``temperature``."""
    versions: tuple[int, ...]
    """The policy version that sampled each token."""
    temperature: float
    """The temperature of the log-probabilities; 1 for a greedy completion."""
    constrained: bool = False
    """Whether a grammar constrained the sampling, so that the log-probabilities are not those of the policy alone."""
    grammar: Grammar | None = None
    """That grammar, from which and the ids follows which tokens were allowed where; ``None`` where it is not known."""
    stop_ids: tuple[int, ...] = ()
    """The ids that could end the completion where the grammar may end; empty without a grammar."""
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each token the likeliest (id, log-probability) pairs in its place, the likeliest first; empty where the
    request did not ask for them."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of token ids that follows the first ``fork`` tokens of span ``parent``."""

    parent: int
    """The index of the parent span, always smaller than this span's own; -1 at the root."""
    fork: int
    ids: tuple[int, ...]
    sampled: Sampled | None = None
    """``None`` for given tokens."""


class TokenTree:
    """The spans of one episode. It is not safe for threads: the episode's session serialises access."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._children: dict[int, dict[int, dict[int, list[int]]]] = {}
        # Children by parent, by where they fork from it, and by their first token.

    @property
    def spans(self) -> Sequence[Span]:
        """All spans, by index; a parent comes before its children."""
        return self._spans

    def __len__(self) -> int:
        """Return how many tokens the tree stores."""
        return sum(len(span.ids) for span in self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenTree) and self._spans == other._spans

    __hash__ = None  # type: ignore[assignment]

    def path(self, position: Position) -> list[int]:
        """Return the ids from the root up to ``position``."""
        pieces: list[tuple[int, ...]] = []
        index, offset = position
        while index >= 0:
            span = self._spans[index]
            pieces.append(span.ids[:offset])
            index, offset = span.parent, span.fork
        return list(chain.from_iterable(reversed(pieces)))

    def longest_path(self) -> int:
        """Return how many ids come before the last token of a completion, at most over all completions."""
        starts: list[int] = []
        for span in self._spans:
            starts.append(span.fork + (starts[span.parent] if span.parent >= 0 else 0))
        ends = (start + len(span.ids) for start, span in zip(starts, self._spans, strict=True) if span.sampled)
        return max(ends, default=1) - 1

    def walk(self, ids: Sequence[int], start: Position = ROOT) -> tuple[Position, int]:
        """Follow ``ids`` from ``start`` as far as recorded tokens equal them.

        Returns the deepest position reached and how many of ``ids`` lead to it. The path may pass through any span,
        sampled or given; of equally deep positions the oldest is returned. Each span below ``start`` is compared at
        most once.
        """
        wanted = tuple(ids)
        best, matched = self._settled(start), 0
        open_ends = [(best, 0)]
        while open_ends:
            (index, offset), done = open_ends.pop()
            common = _common_prefix(self._spans[index].ids, offset, wanted, done) if index >= 0 else 0
            reached = done + common
            if reached > matched or (reached == matched and index < best.span):
                best, matched = Position(index, offset + common), reached
            for fork, branches in self._children.get(index, {}).items():
                ahead = done + fork - offset
                if done <= ahead <= reached and ahead < len(wanted):
                    open_ends += ((Position(child, 0), ahead) for child in branches.get(wanted[ahead], ()))
        return best, matched

    def add_given(self, ids: Sequence[int], at: Position = ROOT) -> Position:
        """Record given tokens after ``at`` and return the position after them; tokens that are there are shared."""
        position, matched = self.walk(ids, at)
        if matched == len(ids):
            return position
        return self._add(Span(position.span, position.offset, tuple(ids[matched:])))

    def add_sampled(self, ids: Sequence[int], sampled: Sampled, at: Position) -> Position:
        """Record a completion after ``at`` as a new span and return the position after it.

        Raises ``ValueError`` for an empty completion and for one whose log-probabilities or versions differ from it in
        number.
        """
        if not ids or not len(ids) == len(sampled.logprobs) == len(sampled.versions):
            raise ValueError(
                f"{len(ids)} sampled ids with {len(sampled.logprobs)} logprobs and {len(sampled.versions)} versions"
            )
        parent, fork = self._settled(at)
        return self._add(Span(parent, fork, tuple(ids), sampled))

    def _settled(self, position: Position) -> Position:
        """``position``, except that the start of a span is expressed as the position in its parent where it forks."""
        while position.offset == 0 and position.span >= 0:
            span = self._spans[position.span]
            position = Position(span.parent, span.fork)
        return position

    def _add(self, span: Span) -> Position:
        branches = self._children.setdefault(span.parent, {}).setdefault(span.fork, {})
        branches.setdefault(span.ids[0], []).append(len(self._spans))
        self._spans.append(span)
        return Position(len(self._spans) - 1, len(span.ids))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the spans as plain JSON values."""
        return [
            {"parent": span.parent, "fork": span.fork, "ids": list(span.ids)}
            | ({} if span.sampled is None else {"sampled": _sampled_to_json(span.sampled)})
            for span in self._spans
        ]

    @classmethod
    def from_json(cls, rows: Sequence[dict[str, Any]]) -> TokenTree:
        """Return the tree that ``to_json`` wrote."""
        tree = cls()
        for row in rows:
            sampled = row.get("sampled")
            tree._add(
                Span(
                    row["parent"],
                    row["fork"],
                    tuple(row["ids"]),
                    None if sampled is None else _sampled_from_json(sampled),
                )
            )
        return tree


def _sampled_to_json(sampled: Sampled) -> dict[str, Any]:
    return (
        {
            "call": sampled.call,
            "logprobs": list(sampled.logprobs),
            "versions": list(sampled.versions),
            "temperature": sampled.temperature,
            "constrained": sampled.constrained,
        }
        | (
            {}
            if sampled.grammar is None
            else {
                "grammar": {"kind": sampled.grammar.kind, "text": sampled.grammar.text},
                "stop_ids": list(sampled.stop_ids),
            }
        )
        | (
            {}
            if not sampled.alternatives
            else {"alternatives": [[list(pair) for pair in pairs] for pairs in sampled.alternatives]}
        )
    )


def _sampled_from_json(row: dict[str, Any]) -> Sampled:
    grammar = row.get("grammar")
    return Sampled(
        row["call"],
        tuple(row["logprobs"]),
        tuple(row["versions"]),
        row["temperature"],
        row["constrained"],
        None if grammar is None else Grammar(**grammar),
        tuple(row.get("stop_ids", ())),
        tuple(tuple((id, logprob) for id, logprob in pairs) for pairs in row.get("alternatives", ())),
    )


def _common_prefix(left: tuple[int, ...], i: int, right: tuple[int, ...], j: int) -> int:
    """How many tokens ``left[i:]`` and ``right[j:]`` have in common at their start. Slices are compared, for speed."""
    size = min(len(left) - i, len(right) - j)
    same = 0
    while size:
        if left[i + same : i + same + size] == right[j + same : j + same + size]:
            same += size
            size = min(size, len(left) - i - same, len(right) - j - same)
        else:
            size //= 2
    return same
