"""Tree attention as dense blocks, so that what does not attend to each other costs nothing.

A *segment* is a run of positions without a branch. Its descendants come right after it in the layout, so all
of them attending to all of it is one rectangle without a mask, and the segment attending to itself is one
causal triangle: those two blocks a segment are the whole of attention over a tree. Small subtrees are not
worth their own blocks and are tiles instead: dense squares with a mask, stacked by size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from agentrl.algorithms.contract import Ints

    Mask = npt.NDArray[np.bool_]

__all__ = ["Block", "Blocks", "Tiles", "attends", "cut_blocks"]

TILE = 160
"""Tokens of a subtree from which on blocks of its own cost less than a dense square."""
STRIDE = 16
"""Tiles of sizes that round up to the same multiple of this are stacked."""


@dataclass(frozen=True, slots=True)
class Block:
    """Positions ``queries`` attend to positions ``keys``: causally, as ``mask`` says, or all to all."""

    queries: slice
    keys: slice
    causal: bool = False
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Tiles:
    """Subtrees of similar size, each attending within itself."""

    index: Ints
    """Shape (tiles, size): positions, padded with the subtree's first."""
    valid: Mask
    """Shape (tiles, size): false where it is padding."""
    mask: Mask | None
    """Shape (tiles, size, size): who attends to whom; ``None`` where each tile is one plain causal run."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The attention of one bin. Every position is a query of exactly one tile or of one block in ``own``."""

    tiles: list[Tiles]
    own: list[Block]
    """Segments attending to themselves."""
    above: list[Block]
    """Descendants attending to a segment."""


def attends(depth: Ints, subtree_end: Ints, queries: Ints, keys: Ints, window: int | None) -> Mask:
    """Whether each of ``queries`` attends to each of ``keys``; shape (…, queries, keys)."""
    query, key = queries[..., :, None], keys[..., None, :]
    mask: Mask = (key <= query) & (query < subtree_end[key])
    return mask if window is None else mask & (depth[query] - depth[key] < window)


def cut_blocks(depth: Ints, subtree_end: Ints, window: int | None) -> Blocks:
    """Cut the attention of a bin, in a layer with ``window`` or none, into blocks."""
    own: list[Block] = []
    above: list[Block] = []
    small: list[tuple[int, int]] = []
    segments = np.flatnonzero(np.diff(subtree_end, append=-1)) + 1  # where each segment stops
    position = 0
    while position < len(depth):
        end = int(subtree_end[position])
        if end - position <= TILE:
            small.append((position, end))
            position = end
            continue
        stop = int(segments[np.searchsorted(segments, position, side="right")])
        if window is not None:
            stop = min(stop, position + window)  # so that it needs no mask
        own.append(Block(slice(position, stop), slice(position, stop), causal=True))
        if stop < end and window != 1:  # such a window holds nothing but the position itself
            above.append(_above(depth, subtree_end, position, stop, end, window))
        position = stop
    return Blocks(list(_stacked(depth, subtree_end, small, window)), own, above)


def _above(depth: Ints, subtree_end: Ints, start: int, stop: int, end: int, window: int | None) -> Block:
    """The descendants ``[stop, end)`` of the segment ``[start, stop)`` attending to it."""
    if window is None or depth[stop:end].max() - depth[start] < window:
        return Block(slice(stop, end), slice(start, stop))
    start = max(start, stop - window + 1)
    near = np.flatnonzero(depth[stop:end] - depth[stop - 1] < window)
    end = stop + int(near[-1]) + 1
    mask = attends(depth, subtree_end, np.arange(stop, end), np.arange(start, stop), window)
    return Block(slice(stop, end), slice(start, stop), mask=mask)


def _stacked(depth: Ints, subtree_end: Ints, small: list[tuple[int, int]], window: int | None) -> Iterator[Tiles]:
    classes: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for start, end in small:
        plain = bool((subtree_end[start:end] == end).all()) and (window is None or end - start <= window)
        classes.setdefault((-((start - end) // STRIDE), plain), []).append((start, end))
    for (_, plain), subtrees in classes.items():
        starts, ends = np.array(subtrees, dtype=np.int64).T
        within = np.arange((ends - starts).max())
        valid = within < (ends - starts)[:, None]
        index = np.where(valid, starts[:, None] + within, starts[:, None])
        mask = None if plain else attends(depth, subtree_end, index, index, window) & valid[:, None, :]
        yield Tiles(index, valid, mask)
