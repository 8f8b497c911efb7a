"""Metrics as columns of numbers for a plot, of which a page that follows a run asks for what is new."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from agentrl.runs.contract import MetricsLine

__all__ = ["MOST", "columns", "stride"]

MOST = 2000
"""Most steps that are drawn of one run, about; more cannot be told apart on a screen, and slow the browser down."""


def stride(count: int) -> int:
    """How many of ``count`` lines stand between two that are drawn: a power of 2, so that it seldom changes."""
    every = 1
    while count > MOST * every:
        every *= 2
    return every


def columns(
    lines: Sequence[MetricsLine], names: Sequence[str], after: int = 0, until: int | None = None, every: int = 0
) -> dict[str, Any]:
    """The metrics ``names`` of ``lines``, from the line ``after`` on and before the line ``until``, as JSON.

    ``step``, ``time`` (seconds since the epoch) and each of ``metrics`` have a value a line; ``None`` where the line
    has none, or one that is not finite. Of many steps one in ``every`` is among them, and every evaluation.
    ``start`` is the first line that was looked at, and ``count`` the line to go on from. Where the caller has drawn one
    in another number than ``every``, or knows more lines than there are, it is all of them, and ``start`` is 0.
    """
    used = stride(len(lines))
    if every != used or after > len(lines):
        after, until = 0, None
    end = len(lines) if until is None else min(until, len(lines))
    drawn = [
        lines[index] for index in range(after, end) if used == 1 or index % used == 0 or lines[index].is_evaluation
    ]
    return {
        "start": after,
        "count": end,
        "every": used,
        "step": [line.step for line in drawn],
        "time": [line.time for line in drawn],
        "metrics": {name: [_finite(line.metrics.get(name)) for line in drawn] for name in names},
    }


def _finite(value: float | None) -> float | None:
    """``value`` where JSON has a number for it; a file that another program wrote may hold one that it has not."""
    return value if value is not None and math.isfinite(value) else None
