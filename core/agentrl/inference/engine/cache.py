"""Our KV block as the cache that a Hugging Face model's forward writes to and reads from."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from agentrl.inference.engine.kv import KVBlock

__all__ = ["RowCache"]


class RowCache(Cache):
    """The first ``rows`` rows of a block, each with its own length.

    ``positions_BQ`` are the columns that the forward's tokens are written to; attention then sees the
    first ``length`` columns, and the mask says which of them each token may look at.
    """

    def __init__(self, block: KVBlock, positions_BQ: torch.Tensor, length: int) -> None:
        super().__init__(layers=[])
        self._block = block
        self._positions = positions_BQ
        self._length = length
        self._indices: dict[int, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[B, H, Q, D]`` keys and values; return those of the first ``length`` columns."""
        return self._put(2 * layer_idx, key_states), self._put(2 * layer_idx + 1, value_states)

    def _put(self, plane: int, states: torch.Tensor) -> torch.Tensor:
        target = self._block.plane(plane)
        index = self._flat_index(states.shape[1])
        target.view(-1, states.shape[-1]).index_copy_(0, index, states.reshape(-1, states.shape[-1]))
        return target[: len(states), :, : self._length]

    def _flat_index(self, heads: int) -> torch.Tensor:
        """Where a ``[B, H, Q]`` token lies in a plane seen as ``[R * H * C]``."""
        index = self._indices.get(heads)
        if index is None:
            rows = torch.arange(len(self._positions) * heads, device=self._positions.device)
            starts_BH1 = rows.view(-1, heads, 1) * self._block.capacity
            index = self._indices[heads] = (starts_BH1 + self._positions[:, None, :]).flatten()
        return index

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that attention sees."""
        return self._length
