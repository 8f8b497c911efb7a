"""The KV cache: keys and values of attention, where they are stored and kept for later prompts.

A *plane* is the keys, or the values, of one layer. Planes of equal shape share one tensor, so that a row is copied,
or handed to the prefix cache, in one operation whatever the number of layers. ``KVBlock`` stores rows of KV,
``RowCache`` lets a Hugging Face model write to and read from a block, and ``PrefixCache`` keeps KV that later prompts
may begin with.

Shapes: ``P`` planes, ``B`` rows of a forward, ``R`` rows of a block, ``H`` key-value heads, ``Q`` tokens a row,
``C`` capacity of a row in tokens, ``D`` head dimension.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache

__all__ = [
    "FEWEST_ROWS",
    "GRAIN",
    "Ids",
    "KVBlock",
    "KVLayout",
    "PrefixCache",
    "RowCache",
    "Segment",
    "common_length",
    "round_up",
]

Ids = npt.NDArray[np.int64]

Segment = tuple[torch.Tensor, ...]
"""KV of consecutive tokens of one row, one tensor ``[P, H, tokens, D]`` for each shape of plane."""

GRAIN = 32
"""The lengths that attention sees are multiples of this: masked columns then never change a row's sums, and CUDA's
memory-efficient kernels find the mask aligned."""

FEWEST_ROWS = 4
"""The fewest rows of a forward, and the tokens of a prompt of which its pieces are multiples: on CPU a product of fewer
rows takes slower kernels, which round otherwise too."""


def round_up(tokens: int) -> int:
    """Returns the smallest multiple of ``GRAIN`` that is at least ``tokens``."""
    return -(-tokens // GRAIN) * GRAIN


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shapes, type and device of a model's planes."""

    planes: tuple[tuple[int, int], ...]
    """``(H, D)`` of layer 0's keys, layer 0's values, layer 1's keys, and so on."""
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes over all layers."""
        return sum(heads * dim for heads, dim in self.planes) * self.dtype.itemsize

    def groups(self) -> dict[tuple[int, int], list[int]]:
        """Returns the indices of the planes of each shape ``(H, D)``."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(self.planes):
            groups.setdefault(shape, []).append(index)
        return groups


class KVBlock:
    """The KV of ``rows`` rows of up to ``capacity`` tokens each, all zeros at first."""

    def __init__(self, layout: KVLayout, rows: int, capacity: int) -> None:
        self.layout = layout
        self.rows = rows
        self.capacity = capacity
        self.tensors: list[torch.Tensor] = []
        self._planes: dict[int, torch.Tensor] = {}
        for (heads, dim), indices in layout.groups().items():
            shape = (len(indices), rows, heads, capacity, dim)
            # Zeros, because a masked column still enters a product with its weight of 0, and 0 times NaN is NaN.
            tensor = torch.zeros(shape, dtype=layout.dtype, device=layout.device)
            self.tensors.append(tensor)
            self._planes.update(zip(indices, tensor.unbind(0), strict=True))

    def plane(self, index: int) -> torch.Tensor:
        """Returns ``[R, H, C, D]``: the keys of layer ``index // 2`` where ``index`` is even, else its values."""
        return self._planes[index]

    def read(self, row: int, start: int, end: int) -> Segment:
        """Returns views of the tokens ``start`` to ``end`` of a row."""
        return tuple(tensor[:, row, :, start:end] for tensor in self.tensors)

    def write(self, row: int, start: int, segment: Segment) -> None:
        """Copy a segment to a row, its first token at ``start``."""
        for tensor, part in zip(self.tensors, segment, strict=True):
            tensor[:, row, :, start : start + part.shape[2]] = part

    def write_prefix(self, row: int, segments: Iterable[Segment]) -> int:
        """Copy consecutive segments to the beginning of a row. Returns how many tokens they are."""
        end = 0
        for segment in segments:
            self.write(row, end, segment)
            end += segment[0].shape[2]
        return end

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` tokens of row ``source`` over those of row ``target``."""
        self.write(target, 0, self.read(source, 0, tokens))

    def wipe(self, row: int) -> None:
        """Set a row to zeros: a NaN left in a masked column would reach the next user of the row."""
        for tensor in self.tensors:
            tensor[:, row] = 0

    def resized(self, rows: int, capacity: int) -> KVBlock:
        """Returns a new block of another size with the same content, as far as both reach."""
        block = KVBlock(self.layout, rows, capacity)
        rows, capacity = min(rows, self.rows), min(capacity, self.capacity)
        for target, source in zip(block.tensors, self.tensors, strict=True):
            target[:, :rows, :, :capacity] = source[:, :rows, :, :capacity]
        return block


class RowCache(Cache):
    """The first ``B`` rows of a block as the cache that a Hugging Face forward takes; rows may differ in length.

    ``positions_BQ`` are the columns that the forward's tokens are written to. Attention sees the first ``length``
    columns, and the mask says which of them each token may look at.
    """

    def __init__(self, block: KVBlock, positions_BQ: torch.Tensor, length: int) -> None:
        super().__init__(layers=[])
        self._block = block
        self._positions_BQ = positions_BQ
        self._length = length
        self._indices: dict[int, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values ``[B, H, Q, D]`` of a layer. Returns those of the first ``length`` columns."""
        return self._put(2 * layer_idx, key_states), self._put(2 * layer_idx + 1, value_states)

    def _put(self, plane: int, states: torch.Tensor) -> torch.Tensor:
        target = self._block.plane(plane)
        index = self._flat_index(states.shape[1])
        target.view(-1, states.shape[-1]).index_copy_(0, index, states.reshape(-1, states.shape[-1]))
        return target[: len(states), :, : self._length]

    def _flat_index(self, heads: int) -> torch.Tensor:
        """Where the tokens ``[B, H, Q]`` lie in a plane that is viewed as ``[R * H * C]``."""
        index = self._indices.get(heads)
        if index is None:
            rows = torch.arange(len(self._positions_BQ) * heads, device=self._positions_BQ.device)
            starts_BH1 = rows.view(-1, heads, 1) * self._block.capacity
            index = self._indices[heads] = (starts_BH1 + self._positions_BQ[:, None, :]).flatten()
        return index

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns how many columns attention sees."""
        return self._length


class _Node:
    __slots__ = ("children", "ids", "kv", "parent")

    def __init__(self, ids: Ids, kv: Segment, parent: _Node | None) -> None:
        self.ids = ids
        self.kv = kv
        self.parent = parent
        self.children: dict[int, _Node] = {}


class PrefixCache:
    """KV of token sequences that were computed before, at most ``max_tokens`` tokens, as a radix tree.

    Every node holds the tokens of one edge and their KV, so that sequences with a common beginning (a group's prompt,
    the turns of a session) store it once. The least recently used edge is evicted first.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens = 0
        self._root = _Node(np.empty(0, np.int64), (), None)
        # Oldest use first. A node is touched before its parent, so the first entry is always a leaf.
        self._recent: OrderedDict[_Node, None] = OrderedDict()

    def clear(self) -> None:
        """Forget everything, as after a change of weights."""
        self._root.children.clear()
        self._recent.clear()
        self.tokens = 0

    def match(self, ids: Ids) -> list[Segment]:
        """Returns the KV of the longest known prefix of ``ids``, as consecutive views that must be copied at once."""
        path, _, shared = self._walk(ids)
        self._touch(path)
        pieces = [node.kv for node in path]
        if path and shared < len(path[-1].ids):
            pieces[-1] = tuple(part[:, :, :shared] for part in pieces[-1])
        return pieces

    def insert(self, ids: Ids, kv: Segment) -> None:
        """Remember the KV of ``ids``. What is not known yet is copied; a sequence beyond ``max_tokens`` is not kept."""
        path, known, shared = self._walk(ids)
        if len(ids) > self.max_tokens:
            return
        if path and shared < len(path[-1].ids) and known < len(ids):
            path[-1] = self._split(path[-1], shared)
        if known < len(ids):
            parent = path[-1] if path else self._root
            node = _Node(ids[known:].copy(), tuple(part[:, :, known:].clone() for part in kv), parent)
            parent.children[int(ids[known])] = node
            path.append(node)
            self.tokens += len(node.ids)
        self._touch(path)
        self._evict()

    def _walk(self, ids: Ids) -> tuple[list[_Node], int, int]:
        """The nodes that ``ids`` passes, how many tokens they cover, and how many of the last node's."""
        path: list[_Node] = []
        node, known, shared = self._root, 0, 0
        while known < len(ids) and shared == len(node.ids):
            child = node.children.get(int(ids[known]))
            if child is None:
                break
            shared = common_length(child.ids, ids[known:])
            known += shared
            path.append(child)
            node = child
        return path, known, shared

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut an edge in two and return the upper half. Both are copies: either may be evicted alone."""
        assert node.parent is not None
        upper = _Node(node.ids[:at].copy(), tuple(part[:, :, :at].clone() for part in node.kv), node.parent)
        node.parent.children[int(node.ids[0])] = upper
        upper.children[int(node.ids[at])] = node
        node.ids, node.kv, node.parent = node.ids[at:].copy(), tuple(part[:, :, at:].clone() for part in node.kv), upper
        return upper

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._recent[node] = None
            self._recent.move_to_end(node)

    def _evict(self) -> None:
        while self.tokens > self.max_tokens:
            leaf, _ = self._recent.popitem(last=False)
            assert leaf.parent is not None
            del leaf.parent.children[int(leaf.ids[0])]
            self.tokens -= len(leaf.ids)


def common_length(left: Ids, right: Ids) -> int:
    """Returns how many leading ids are equal."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length
