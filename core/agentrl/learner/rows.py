"""Padded rows: one path a row, for models that cannot take the forest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agentrl.learner.passes import Pass, check_lengths

if TYPE_CHECKING:
    from agentrl.algorithms.contract import Ints

__all__ = ["padded_size", "stack"]


def stack(paths: Sequence[Ints], term_path: Ints, term_depth: Ints, tokens_per_batch: int) -> list[Pass]:
    """Rows that hold every path, at most ``tokens_per_batch`` tokens with the padding.

    Padding is id 0 on the right, which no earlier position attends to. Raises ``RunError`` for a path longer than that.
    """
    check_lengths([len(path) for path in paths], tokens_per_batch)
    return [_rows(paths, chosen, term_path, term_depth) for chosen in _chosen(list(map(len, paths)), tokens_per_batch)]


def padded_size(lengths: Sequence[int], tokens_per_batch: int) -> int:
    """Tokens that rows of these lengths would take, with their padding."""
    return sum(len(chosen) * max(lengths[index] for index in chosen) for chosen in _chosen(lengths, tokens_per_batch))


def _chosen(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of the rows that go together, longest first, so that little is padding."""
    chosen: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if chosen and (len(chosen) + 1) * lengths[chosen[0]] > budget:
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def _rows(paths: Sequence[Ints], chosen: Sequence[int], term_path: Ints, term_depth: Ints) -> Pass:
    ids = np.zeros((len(chosen), len(paths[chosen[0]])), dtype=np.int64)
    row_of = np.full(len(paths), -1, dtype=np.int64)
    for row, index in enumerate(chosen):
        ids[row, : len(paths[index])] = paths[index]
        row_of[index] = row
    terms = np.flatnonzero(row_of[term_path] >= 0)
    depth = np.tile(np.arange(ids.shape[1]), (len(chosen), 1))
    return Pass(ids=ids, depth=depth, terms=terms, row=row_of[term_path[terms]], position=term_depth[terms])
