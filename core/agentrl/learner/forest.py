"""The forest: one trie over the ids of a batch, laid out in bins for a forward pass.

Equal prefixes, a group's prompt or an episode's history, are one run of positions, computed once; loss terms
point at positions, so two equal samples stay two terms. A bin lists its positions depth first, and two vectors
say who attends to whom: position ``i`` attends to ``j`` exactly when ``j <= i < subtree_end[j]``, and, in a layer
with a window, ``depth[i] - depth[j] < window``.

The trie is never built node by node: of paths in lexicographic order, each shares with the one before it what
it shares with any earlier one, so the lengths of those common prefixes are the trie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from agentrl.learner.passes import Pass, check_lengths

if TYPE_CHECKING:
    from agentrl.algorithms.contract import Ints

__all__ = ["lay_out"]


def lay_out(paths: Sequence[Ints], term_path: Ints, term_depth: Ints, tokens_per_batch: int) -> list[Pass]:
    """Bins that hold every path, with term ``k`` at depth ``term_depth[k]`` of path ``term_path[k]``.

    Bins are runs of the paths in lexicographic order, chosen so that the fewest tokens are computed in all: a
    tree is cut only where it does not fit, between branches, where its prefix is shortest, and repeats it there.
    Raises ``RunError`` for a path longer than a bin.
    """
    check_lengths([len(path) for path in paths], tokens_per_batch)
    order = sorted(range(len(paths)), key=lambda index: paths[index].astype(">u4").tobytes())
    shared = _common_prefixes([paths[index] for index in order])
    terms_of = _terms_by_path(term_path, len(paths))
    bins: list[Pass] = []
    for first, stop in _cut([len(paths[index]) for index in order], shared, tokens_per_batch):
        run = order[first:stop]
        bins.append(_bin([paths[i] for i in run], shared[first:stop], [terms_of[i] for i in run], term_depth))
    return bins


def _common_prefixes(paths: Sequence[Ints]) -> list[int]:
    """How many ids each path shares with the one before it; 0 for the first."""
    shared = [0] * len(paths)
    for index in range(1, len(paths)):
        length = min(len(paths[index - 1]), len(paths[index]))
        differs = paths[index - 1][:length] != paths[index][:length]
        shared[index] = int(differs.argmax()) if differs.any() else length
    return shared


def _terms_by_path(term_path: Ints, paths: int) -> list[Ints]:
    order = np.argsort(term_path, kind="stable")
    return np.split(order, np.searchsorted(term_path[order], np.arange(1, paths)))


def _cut(lengths: Sequence[int], shared: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Runs ``[first, stop)`` of paths with at most ``budget`` tokens each and the fewest in all.

    A shortest path over the places to cut: a run costs its first path whole and what is new of each other path,
    and one token more, so that of equally cheap cuts the one with fewer bins wins.
    """
    prefix = np.array([*shared, 0], dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64) - prefix[:-1])])
    best = np.zeros(len(lengths) + 1, dtype=np.int64)
    start = np.zeros(len(lengths) + 1, dtype=np.int64)
    low = 0
    for stop in range(1, len(lengths) + 1):
        while before[stop] - before[low] + prefix[low] > budget:  # falls as low rises
            low += 1
        costs = best[low:stop] + before[stop] - before[low:stop] + prefix[low:stop] + 1
        start[stop] = low + int(costs.argmin())
        best[stop] = costs.min()
    return _runs(start)


def _runs(start: Ints) -> list[tuple[int, int]]:
    """The runs that end at the last path, each starting where ``start`` says that the one ending there does."""
    runs: list[tuple[int, int]] = []
    stop = len(start) - 1
    while stop > 0:
        runs.append((int(start[stop]), stop))
        stop = int(start[stop])
    return runs[::-1]


def _bin(paths: Sequence[Ints], shared: Sequence[int], terms: Sequence[Ints], term_depth: Ints) -> Pass:
    new = [0, *shared[1:]]
    size = sum(len(path) - common for path, common in zip(paths, new, strict=True))
    subtree_end = np.full(size, size, dtype=np.int64)
    at_depth = np.empty(max(map(len, paths)), dtype=np.int64)  # position of each depth on the current path
    position: list[Ints] = []
    start = open_until = 0
    for path, common, on_path in zip(paths, new, terms, strict=True):
        subtree_end[at_depth[common:open_until]] = start
        at_depth[common : len(path)] = np.arange(start, start + len(path) - common)
        position.append(at_depth[term_depth[on_path]])
        start += len(path) - common
        open_until = len(path)
    ids = [path[common:] for path, common in zip(paths, new, strict=True)]
    depth = [np.arange(common, len(path)) for path, common in zip(paths, new, strict=True)]
    computed = np.concatenate(terms)
    return Pass(
        ids=np.concatenate(ids)[None],
        depth=np.concatenate(depth)[None],
        terms=computed,
        row=np.zeros_like(computed),
        position=np.concatenate(position),
        subtree_end=subtree_end,
    )
