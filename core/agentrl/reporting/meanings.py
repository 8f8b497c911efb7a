"""What the metrics of a run mean, and what a healthy run shows, in the words of ``metrics.md`` beside this module.

That file is the only place where they are written: the documentation takes its page from it, and whatever shows a
metric its sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["Meaning", "meaning_of", "meanings", "source"]

_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_VARIABLE = re.compile(r"[A-Z]+")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What some metrics mean. The texts are plain, with names of keys and metrics between backticks."""

    names: tuple[str, ...]
    """The metrics; a part in capitals, such as that of ``reward/parts/NAME``, stands for any text."""
    unit: str
    """Of the values; empty for plain numbers."""
    text: str
    healthy: str
    """What a healthy run shows; empty where nothing can be said."""
    topic: str
    """The heading that they stand under."""


def source() -> str:
    """The Markdown that the meanings are written in; its links are relative to the documentation's folder."""
    return resources.files("agentrl.reporting").joinpath("metrics.md").read_text(encoding="utf-8")


@cache
def meanings() -> tuple[Meaning, ...]:
    """All meanings, in the order in which they are written."""
    return tuple(_read(source()))


@cache
def meaning_of(metric: str) -> Meaning | None:
    """What ``metric`` means; ``None`` where nobody has said it, as of a plugin's own."""
    exact = (each for each in meanings() if metric in each.names)
    like = (each for each in meanings() if any(_pattern(name).fullmatch(metric) for name in each.names))
    return next(exact, None) or next(like, None)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(_VARIABLE.sub(".+", re.escape(name)))


def _read(text: str) -> Iterator[Meaning]:
    topic, inside = "", False
    for line in text.splitlines():
        if line.startswith("## "):
            topic = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if inside and cells and not cells[0].startswith("---"):
            names, unit, meaning, healthy = [*cells, ""][:4]
            yield Meaning(tuple(re.findall(r"`([^`]+)`", names)), unit, _plain(meaning), _plain(healthy), topic)
        inside = bool(cells)  # The first row of a table is its heading.


def _plain(cell: str) -> str:
    return _LINK.sub(r"\1", cell)
