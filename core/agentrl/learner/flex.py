"""Tree attention on accelerators: FlexAttention, with a mask made from two integer vectors."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FlexForest"]


class FlexForest:
    """Attention over one bin: ``j <= i < subtree_end[j]`` and, with a window, ``depth[i] - depth[j] < window``."""

    def __init__(self, depth: Tensor, subtree_end: Tensor) -> None:
        """Both of shape (tokens,), on the device of the queries to come."""
        self._depth = depth
        self._subtree_end = subtree_end
        self._masks: dict[int | None, BlockMask] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """All of shape (1, heads, tokens, head size); key and value may have fewer heads, each serving several."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        attend = _attention(query.device.type)
        output: Tensor = attend(
            query, key, value, block_mask=self._masks[window], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return output

    def _mask(self, window: int | None) -> BlockMask:
        depth, subtree_end = self._depth, self._subtree_end

        def in_tree(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < subtree_end[key])

        if window is None:
            return create_block_mask(in_tree, None, None, len(depth), len(depth), device=depth.device)
        near = window

        def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return in_tree(batch, head, query, key) & (depth[query] - depth[key] < near)

        return create_block_mask(in_window, None, None, len(depth), len(depth), device=depth.device)


@cache
def _attention(device: str) -> Callable[..., Any]:
    """Compiled, once for all lengths, where it trains; the plain function holds every score in memory."""
    attend: Any = flex_attention
    return attend if device == "cpu" else torch.compile(attend, dynamic=True)
