"""Keys and values of attention: where every layer keeps what it has seen of each row.

A *plane* is the keys, or the values, of one layer. Planes of equal shape share one tensor, so that a row
is copied, or handed to the prefix cache, in one operation whatever the number of layers.

Shapes: ``P`` planes, ``R`` rows, ``H`` key-value heads, ``C`` capacity in tokens, ``D`` head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

__all__ = ["GRAIN", "KVBlock", "KVLayout", "Segment", "round_up"]

Segment = tuple[torch.Tensor, ...]
"""KV of consecutive tokens of one row, one tensor ``[P, H, tokens, D]`` for each shape of plane."""

GRAIN = 32
"""Lengths that attention sees are multiples of this: masked columns then never change a row's sums, and
CUDA's memory-efficient kernels find the mask aligned."""


def round_up(tokens: int) -> int:
    """The next multiple of ``GRAIN``."""
    return -(-tokens // GRAIN) * GRAIN


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shapes of a model's planes."""

    planes: tuple[tuple[int, int], ...]
    """``(H, D)`` of layer 0's keys, layer 0's values, layer 1's keys…"""
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Memory that one token takes over all layers."""
        return sum(heads * dim for heads, dim in self.planes) * self.dtype.itemsize

    def groups(self) -> dict[tuple[int, int], list[int]]:
        """Indices of the planes of each shape."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(self.planes):
            groups.setdefault(shape, []).append(index)
        return groups


class KVBlock:
    """KV of ``rows`` rows of up to ``capacity`` tokens, not initialised."""

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
        """``[R, H, C, D]``: keys of layer ``index // 2`` where ``index`` is even, values where it is odd."""
        return self._planes[index]

    def read(self, row: int, start: int, end: int) -> Segment:
        """Views of tokens ``start`` to ``end`` of a row."""
        return tuple(tensor[:, row, :, start:end] for tensor in self.tensors)

    def write(self, row: int, start: int, segment: Segment) -> None:
        """Copy a segment to a row, its first token at ``start``."""
        for tensor, part in zip(self.tensors, segment, strict=True):
            tensor[:, row, :, start : start + part.shape[2]] = part

    def write_prefix(self, row: int, segments: Iterable[Segment]) -> int:
        """Copy segments that follow each other to the beginning of a row; returns how many tokens they are."""
        end = 0
        for segment in segments:
            self.write(row, end, segment)
            end += segment[0].shape[2]
        return end

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` tokens of row ``source`` over row ``target``."""
        self.write(target, 0, self.read(source, 0, tokens))

    def wipe(self, row: int) -> None:
        """Zero a row: a NaN left in a masked column would reach whoever has the row next."""
        for tensor in self.tensors:
            tensor[:, row] = 0

    def resized(self, rows: int, capacity: int) -> KVBlock:
        """A block of another size with the same content, as far as both reach."""
        block = KVBlock(self.layout, rows, capacity)
        rows, capacity = min(rows, self.rows), min(capacity, self.capacity)
        for target, source in zip(block.tensors, self.tensors, strict=True):
            target[:, :rows, :, :capacity] = source[:, :rows, :, :capacity]
        return block
