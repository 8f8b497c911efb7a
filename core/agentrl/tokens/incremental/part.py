"""A part of a completion: thinking, content or calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.tokens.incremental.notation import Notation
from agentrl.tokens.incremental.source import NO_MARKS, Source, Steps
from agentrl.tokens.incremental.told import Told
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["Part", "unknown"]


@dataclass(frozen=True, slots=True)
class Part:
    """What the readers of all parts of a completion share."""

    notation: Notation
    vocabulary: Vocabulary
    source: Source
    told: Told
    tools: bool
    """Whether tools are offered."""


def unknown(part: Part, text: str, ids: Sequence[int] = ()) -> Steps[None]:
    """Tell nothing before the end: what comes after ``text`` and ``ids`` may be read in one way or another."""
    rest = [*ids]
    while (more := (yield from part.source.read_ids(NO_MARKS))) is not None:
        rest += [more] if isinstance(more, int) else more
    part.told.say(text + part.vocabulary.decode(rest))
