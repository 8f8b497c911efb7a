"""Packing: a batch's paths laid out in passes, each of which one forward of the model computes.

A model that takes the forest gets *bins*. A bin is a trie over token ids: equal prefixes, such as a group's prompt or
an episode's history, are one run of positions and computed once; targets point at positions, so two equal samples stay
two targets. A bin lists its positions depth first, and two vectors say who attends to whom: position ``i`` attends to
``j`` exactly when ``j <= i < subtree_end[j]``, and, in a layer with a window, ``depth[i] - depth[j] < window``. The
trie is never built node by node: of paths in lexicographic order, each shares with the one before it what it shares
with any earlier one, so the lengths of those common prefixes are the trie.

Any other model gets *padded rows*, one path a row.

On the CPU the attention of a bin is cut into dense blocks. A *segment* is a run of positions without a branch. Its
descendants come right after it, so all of them attending to all of it is one rectangle without a mask, and the segment
attending to itself is one causal triangle: those two blocks a segment are the whole of attention over a tree. Small
subtrees are not worth their own blocks and are *tiles* instead: dense squares with a mask, stacked by size.

Axes: R rows of a pass (1 in a bin), T positions of a row, N targets; S stacked tiles, Q queries and K keys of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.errors import RunError
from agentrl.learner.contract import DEFAULT_POLICY, Targets

if TYPE_CHECKING:
    import numpy.typing as npt

    from agentrl.learner.contract import Ints, TrainBatch

    Column = npt.NDArray[np.int64 | np.float64]
    Mask = npt.NDArray[np.bool_]

__all__ = [
    "IDLE",
    "Block",
    "Blocks",
    "Idle",
    "Pass",
    "Portion",
    "Tiles",
    "attends",
    "check_batch",
    "check_lengths",
    "check_targets",
    "cut_blocks",
    "pack",
    "pack_forest",
    "pack_rows",
    "padded_size",
    "portions",
]

TILE = 160
"""Tokens of a subtree from which on blocks of its own cost less than a dense square."""
IDLE_TOKENS = 4
"""Tokens of a pass that stands for none; one alone would have kernels compiled for it."""
STRIDE = 16
"""Tiles of sizes that round up to the same multiple of this are stacked."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The positions of one forward pass, and the targets that are scored in it."""

    ids_RT: Ints
    """Token ids. Padding of rows is id 0 on the right, which no earlier position attends to."""
    depth_RT: Ints
    """Position ids: how many tokens come before each position on its path."""
    targets_N: Ints
    """Indices, in the batch, of the targets that are scored here."""
    row_N: Ints
    """Row of the position whose logits predict each of those."""
    position_N: Ints
    """That position in its row."""
    subtree_end_T: Ints | None = None
    """In a bin, the first later position that does not descend from each. ``None`` for padded rows, in which every
    position attends to all before it."""


@dataclass(frozen=True, slots=True)
class Idle(Pass):
    """A pass of a rank that has nothing to compute while others have: a few positions, which train and score nothing.

    The target that it names is that of ``IDLE`` and none of a batch.
    """

    learns: bool = False
    """Whether the others compute a gradient."""

    @classmethod
    def like(cls, learns: bool, *, forest: bool) -> Idle:
        """One that is laid out as passes of a forest are, or as rows."""
        run, zero = np.arange(IDLE_TOKENS), np.zeros(1, dtype=np.int64)
        ends = np.full(IDLE_TOKENS, IDLE_TOKENS) if forest else None
        return cls(np.zeros((1, IDLE_TOKENS), dtype=np.int64), run[None], zero, zero, zero, ends, learns)


_ZERO = np.zeros(1, dtype=np.int64)
IDLE = Targets(path=_ZERO, depth=_ZERO, token=_ZERO, temperature=np.ones(1))
"""What ``Idle`` passes score."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Paths that are laid out together, with the targets on them."""

    paths: Sequence[Ints]
    targets_N: Ints
    """Indices, in the batch, of the targets."""
    path_N: Ints
    """Which of ``paths`` each lies on."""
    depth_N: Ints
    first: bool = False
    """Whether these come before others, since a gradient is computed of them."""

    def tokens(self, *, forest: bool) -> int:
        """How many tokens are computed at least, as a forest or as rows."""
        if not forest:
            return sum(map(len, self.paths))
        order = sorted(self.paths, key=lambda path: path.astype(">u4").tobytes())
        return sum(map(len, order)) - sum(_common_prefixes(order))

    @property
    def longest(self) -> int:
        """The tokens of the longest path."""
        return max(map(len, self.paths), default=0)

    def laid_out(self, tokens_per_batch: int, *, forest: bool) -> list[Pass]:
        """Return passes of at most ``tokens_per_batch`` tokens, as a forest or as padded rows.

        Raises ``RunError`` for a path that is longer.
        """
        lay_out = pack_forest if forest else pack_rows
        made = lay_out(self.paths, self.path_N, self.depth_N, tokens_per_batch)
        return [replace(work, targets_N=self.targets_N[work.targets_N]) for work in made]


def portions(paths: Sequence[Ints], targets: Targets, first: Ints | None = None) -> Iterator[Portion]:
    """Yield the paths on which any of the targets ``first`` lies, then the others; without ``first`` all at once."""
    if first is None:
        yield Portion(paths, np.arange(len(targets.path)), targets.path, targets.depth)
        return
    is_first = np.zeros(len(paths), dtype=np.bool_)
    is_first[targets.path[first]] = True
    for chosen, comes_first in ((is_first, True), (~is_first, False)):
        some = [path for path, taken in zip(paths, chosen, strict=True) if taken]
        number = np.cumsum(chosen) - 1
        kept = np.flatnonzero(chosen[targets.path])
        yield Portion(some, kept, number[targets.path[kept]], targets.depth[kept], comes_first)


def pack(
    paths: Sequence[Ints], targets: Targets, tokens_per_batch: int, *, forest: bool, first: Ints | None = None
) -> list[Pass]:
    """Return passes of at most ``tokens_per_batch`` tokens that together score all ``targets``.

    ``first`` holds indices of targets. The paths on which any of them lies come in passes of their own before the
    others, so that a gradient is computed only where one is needed. Raises ``RunError`` for a path that is longer than
    ``tokens_per_batch``.
    """
    return [
        work
        for portion in portions(paths, targets, first)
        for work in portion.laid_out(tokens_per_batch, forest=forest)
    ]


def check_lengths(lengths: Sequence[int], tokens_per_batch: int, labels: Sequence[str] = ()) -> None:
    """Raise ``RunError`` where a single path does not fit a pass; ``labels`` says what each path is called."""
    longest = max(lengths, default=0)
    if longest > tokens_per_batch:
        label = labels[lengths.index(longest)] if labels else "an episode"
        raise RunError(
            f"{label} has a context of {longest} tokens, which does not fit "
            f"training.tokens_per_batch={tokens_per_batch}",
            fix=f"set training.tokens_per_batch to {longest} or more, or bound the agent's turns and tokens",
        )


def check_batch(batch: TrainBatch) -> None:
    """Raise ``ValueError`` for a batch of another policy, or whose columns do not fit each other."""
    if batch.policy != DEFAULT_POLICY:
        raise ValueError(f"a batch of policy {batch.policy!r} was given to the learner of policy {DEFAULT_POLICY!r}")
    if batch.labels and len(batch.labels) != len(batch.paths):
        raise ValueError(f"{len(batch.paths)} paths have {len(batch.labels)} labels")
    check_targets(batch.targets, batch.paths)
    columns = {name: getattr(batch, name) for name in ("logprob", "version", "advantage", "weight", "call")}
    updates = {} if batch.update is None else {"update": batch.update}
    _check_columns({**columns, **updates, **batch.extra}, len(batch.targets.token))


def check_targets(targets: Targets, paths: Sequence[Ints]) -> None:
    """Raise ``ValueError`` where a target points beside the paths, or its mask does not allow its token."""
    count = len(targets.token)
    _check_columns({name: getattr(targets, name) for name in ("path", "depth", "temperature")}, count)
    lengths = np.array([len(path) for path in paths], dtype=np.int64)
    if count and not (targets.path.min() >= 0 and targets.path.max() < len(paths)):
        raise ValueError(f"a target lies on a path that is not among the {len(paths)} given")
    if np.any((targets.depth < 0) | (targets.depth >= lengths[targets.path])):
        raise ValueError("a target's depth is beyond the end of its path")
    if (targets.masks is None) != (targets.mask is None):
        raise ValueError("targets have masks without saying which applies to which, or the other way round")
    if targets.masks is not None and targets.mask is not None:
        _check_columns({"mask": targets.mask}, count)
        masked = np.flatnonzero(targets.mask >= 0)
        token, row = targets.token[masked], targets.mask[masked]
        width = targets.masks.shape[1]
        if np.any(token >> 3 >= width) or not np.all(targets.masks[row, token >> 3] >> (token & 7) & 1):
            raise ValueError("a target's token is not among those that its mask allows")


def _check_columns(columns: dict[str, Column], count: int) -> None:
    for name, column in columns.items():
        if column.shape != (count,):
            raise ValueError(f"column {name!r} of a batch has shape {column.shape} for {count} targets")


def pack_forest(paths: Sequence[Ints], target_path_N: Ints, target_depth_N: Ints, tokens_per_batch: int) -> list[Pass]:
    """Return bins that hold every path, with target ``k`` at depth ``target_depth_N[k]`` of path ``target_path_N[k]``.

    Bins are runs of the paths in lexicographic order, chosen so that the fewest tokens are computed in all: a
    tree is cut only where it does not fit, between branches, where its prefix is shortest, and repeats it there.
    Raises ``RunError`` for a path longer than a bin.
    """
    check_lengths([len(path) for path in paths], tokens_per_batch)
    order = sorted(range(len(paths)), key=lambda index: paths[index].astype(">u4").tobytes())
    shared = _common_prefixes([paths[index] for index in order])
    on_path = _targets_by_path(target_path_N, len(paths))
    bins: list[Pass] = []
    for first, stop in _cut([len(paths[index]) for index in order], shared, tokens_per_batch):
        run = order[first:stop]
        bins.append(_bin([paths[i] for i in run], shared[first:stop], [on_path[i] for i in run], target_depth_N))
    return bins


def _common_prefixes(paths: Sequence[Ints]) -> list[int]:
    """How many ids each path shares with the one before it; 0 for the first."""
    shared = [0] * len(paths)
    for index in range(1, len(paths)):
        length = min(len(paths[index - 1]), len(paths[index]))
        differs = paths[index - 1][:length] != paths[index][:length]
        shared[index] = int(differs.argmax()) if differs.any() else length
    return shared


def _targets_by_path(path_N: Ints, paths: int) -> list[Ints]:
    order = np.argsort(path_N, kind="stable")
    return np.split(order, np.searchsorted(path_N[order], np.arange(1, paths)))


def _cut(lengths: Sequence[int], shared: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Runs ``[first, stop)`` of paths with at most ``budget`` tokens each and the fewest in all.

    A shortest path over the indices where a run may end: a run costs its first path whole and what is new of each other
    path, and one token more, so that of equally cheap cuts the one with fewer bins wins.
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
    runs: list[tuple[int, int]] = []
    stop = len(lengths)
    while stop > 0:
        runs.append((int(start[stop]), stop))
        stop = int(start[stop])
    return runs[::-1]


def _bin(paths: Sequence[Ints], shared: Sequence[int], targets: Sequence[Ints], target_depth_N: Ints) -> Pass:
    new = [0, *shared[1:]]
    size = sum(len(path) - common for path, common in zip(paths, new, strict=True))
    subtree_end_T = np.full(size, size, dtype=np.int64)
    at_depth = np.empty(max(map(len, paths)), dtype=np.int64)  # position of each depth on the current path
    position: list[Ints] = []
    start = open_until = 0
    for path, common, on_path in zip(paths, new, targets, strict=True):
        subtree_end_T[at_depth[common:open_until]] = start
        at_depth[common : len(path)] = np.arange(start, start + len(path) - common)
        position.append(at_depth[target_depth_N[on_path]])
        start += len(path) - common
        open_until = len(path)
    ids = [path[common:] for path, common in zip(paths, new, strict=True)]
    depth = [np.arange(common, len(path)) for path, common in zip(paths, new, strict=True)]
    computed_N = np.concatenate(targets)
    return Pass(
        ids_RT=np.concatenate(ids)[None],
        depth_RT=np.concatenate(depth)[None],
        targets_N=computed_N,
        row_N=np.zeros_like(computed_N),
        position_N=np.concatenate(position),
        subtree_end_T=subtree_end_T,
    )


def pack_rows(paths: Sequence[Ints], target_path_N: Ints, target_depth_N: Ints, tokens_per_batch: int) -> list[Pass]:
    """Return padded rows that hold every path, at most ``tokens_per_batch`` tokens a pass with the padding.

    The arguments and the error are those of ``pack_forest``.
    """
    lengths = [len(path) for path in paths]
    check_lengths(lengths, tokens_per_batch)
    return [_rows(paths, chosen, target_path_N, target_depth_N) for chosen in _chosen(lengths, tokens_per_batch)]


def padded_size(lengths: Sequence[int], tokens_per_batch: int) -> int:
    """Return how many tokens rows of these lengths would take, with their padding."""
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


def _rows(paths: Sequence[Ints], chosen: Sequence[int], target_path_N: Ints, target_depth_N: Ints) -> Pass:
    ids_RT = np.zeros((len(chosen), len(paths[chosen[0]])), dtype=np.int64)
    row_of = np.full(len(paths), -1, dtype=np.int64)
    for row, index in enumerate(chosen):
        ids_RT[row, : len(paths[index])] = paths[index]
        row_of[index] = row
    targets_N = np.flatnonzero(row_of[target_path_N] >= 0)
    return Pass(
        ids_RT=ids_RT,
        depth_RT=np.tile(np.arange(ids_RT.shape[1]), (len(chosen), 1)),
        targets_N=targets_N,
        row_N=row_of[target_path_N[targets_N]],
        position_N=target_depth_N[targets_N],
    )


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


def attends(depth_T: Ints, subtree_end_T: Ints, queries: Ints, keys: Ints, window: int | None) -> Mask:
    """Whether each of ``queries`` attends to each of ``keys``; shape (…, queries, keys)."""
    query, key = queries[..., :, None], keys[..., None, :]
    mask: Mask = (key <= query) & (query < subtree_end_T[key])
    return mask if window is None else mask & (depth_T[query] - depth_T[key] < window)


def cut_blocks(depth_T: Ints, subtree_end_T: Ints, window: int | None) -> Blocks:
    """Cut the attention of a bin, in a layer with ``window`` or none, into blocks."""
    own: list[Block] = []
    above: list[Block] = []
    small: list[tuple[int, int]] = []
    segments = np.flatnonzero(np.diff(subtree_end_T, append=-1)) + 1  # where each segment stops
    position = 0
    while position < len(depth_T):
        end = int(subtree_end_T[position])
        if end - position <= TILE:
            small.append((position, end))
            position = end
            continue
        stop = int(segments[np.searchsorted(segments, position, side="right")])
        if window is not None:
            stop = min(stop, position + window)  # so that it needs no mask
        own.append(Block(slice(position, stop), slice(position, stop), causal=True))
        if stop < end and window != 1:  # such a window holds nothing but the position itself
            above.append(_above(depth_T, subtree_end_T, position, stop, end, window))
        position = stop
    return Blocks(list(_stacked(depth_T, subtree_end_T, small, window)), own, above)


def _above(depth_T: Ints, subtree_end_T: Ints, start: int, stop: int, end: int, window: int | None) -> Block:
    """The descendants ``[stop, end)`` of the segment ``[start, stop)`` attending to it."""
    if window is None or depth_T[stop:end].max() - depth_T[start] < window:
        return Block(slice(stop, end), slice(start, stop))
    start = max(start, stop - window + 1)
    near = np.flatnonzero(depth_T[stop:end] - depth_T[stop - 1] < window)
    end = stop + int(near[-1]) + 1
    mask = attends(depth_T, subtree_end_T, np.arange(stop, end), np.arange(start, stop), window)
    return Block(slice(stop, end), slice(start, stop), mask=mask)


def _stacked(depth_T: Ints, subtree_end_T: Ints, small: list[tuple[int, int]], window: int | None) -> Iterator[Tiles]:
    classes: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for start, end in small:
        plain = bool((subtree_end_T[start:end] == end).all()) and (window is None or end - start <= window)
        classes.setdefault((-((start - end) // STRIDE), plain), []).append((start, end))
    for (_, plain), subtrees in classes.items():
        starts, ends = np.array(subtrees, dtype=np.int64).T
        within = np.arange((ends - starts).max())
        valid = within < (ends - starts)[:, None]
        index = np.where(valid, starts[:, None] + within, starts[:, None])
        mask = None if plain else attends(depth_T, subtree_end_T, index, index, window) & valid[:, None, :]
        yield Tiles(index, valid, mask)
