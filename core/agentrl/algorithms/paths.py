"""Paths: the fewest root-to-leaf runs of ids that hold every span to be trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentrl.tokens.contract import TokenTree

if TYPE_CHECKING:
    from agentrl.algorithms.contract import Ints

__all__ = ["Path", "cover"]


@dataclass(frozen=True, slots=True)
class Path:
    """Ids from the root of a token tree, and the spans whose loss terms lie on them."""

    ids: Ints
    """Without the last sampled token: nothing follows it, so no logits are needed after it."""
    spans: tuple[tuple[int, int], ...]
    """Index of each span, and how many ids come before its first token."""


def cover(tree: TokenTree, trained: Collection[int]) -> list[Path]:
    """Paths such that each span of ``trained`` lies on exactly one of them, whole but for its last token.

    A path that continues a conversation holds the spans of its earlier turns too, so there is one path for
    each end of a conversation and not one for each call. Given tokens that no trained span follows are on none.
    """
    waiting = set(trained)
    paths: list[Path] = []
    for leaf in sorted(trained, reverse=True):  # children before their parents
        if leaf in waiting:
            path = _path(tree, leaf, waiting)
            waiting.difference_update(span for span, _ in path.spans)
            paths.append(path)
    return paths


def _path(tree: TokenTree, leaf: int, waiting: Collection[int]) -> Path:
    pieces: list[tuple[int, ...]] = []
    held: list[tuple[int, int]] = []
    span, stop = leaf, len(tree.spans[leaf].ids) - 1
    while span >= 0:
        ids = tree.spans[span].ids
        pieces.append(ids[:stop])
        if span in waiting and stop >= len(ids) - 1:
            held.append((span, len(pieces)))
        span, stop = tree.spans[span].parent, tree.spans[span].fork
    pieces.reverse()
    starts = np.cumsum([0, *map(len, pieces)])
    ids_on_path = np.array([token for piece in pieces for token in piece], dtype=np.int64)
    return Path(ids_on_path, tuple((span, int(starts[len(pieces) - back])) for span, back in held))
