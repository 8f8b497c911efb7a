"""A curve in one line of text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """All of ``values`` in at most ``width`` characters, between their least and their greatest.

    Where there are more values than characters each stands for the mean of its share; a share without
    a value is blank.
    """
    shares = _shares(values, width)
    known = [value for value in shares if value is not None]
    if not known:
        return " " * len(shares)
    # Halves, so that the span of the largest numbers is one too.
    low, span = min(known) / 2, max(known) / 2 - min(known) / 2
    return "".join(" " if value is None else _block((value / 2 - low) / span if span else 0.5) for value in shares)


def _block(height: float) -> str:
    return _BLOCKS[min(int(height * len(_BLOCKS)), len(_BLOCKS) - 1)]


def _shares(values: Sequence[float | None], width: int) -> list[float | None]:
    count = min(len(values), max(width, 1))
    bounds = [index * len(values) // count for index in range(count + 1)] if count else [0]
    return [_mean(values[start:end]) for start, end in itertools.pairwise(bounds)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    # Rounding may carry a mean beyond its values, and that of the largest floats beyond every number.
    return min(max(sum(value / len(known) for value in known), min(known)), max(known))
