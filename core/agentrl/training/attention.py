"""Attention over a forest, for any Hugging Face model whose layers ask for their attention by name.

Transformers looks the attention function up by the model's ``attn_implementation``; ``NAME`` is ours. It finds the
forest among the keyword arguments that a model hands down to its layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["NAME", "ForestAttention"]

NAME = "agentrl_forest"


class ForestAttention:
    """Who attends to whom in one bin: ``j <= i < subtree_end[j]``, in a layer with a window only if near enough."""

    def __init__(self, depth: Tensor, subtree_end: Tensor) -> None:
        self._depth = depth
        self._subtree_end = subtree_end
        self._trees = _trees(subtree_end)
        self._masks: dict[int | None, list[Tensor]] = {}

    def mask(self, start: int, stop: int, window: int | None) -> Tensor:
        """Shape (stop - start, stop - start), true where the row's position attends to the column's."""
        place = torch.arange(start, stop, device=self._depth.device)
        mask = (place[None, :] <= place[:, None]) & (place[:, None] < self._subtree_end[None, start:stop])
        if window is not None:
            depth = self._depth[start:stop]
            mask &= depth[:, None] - depth[None, :] < window
        return mask

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
        """All of shape (1, heads, tokens, head size); SDPA one tree at a time, so that no tree costs another."""
        if window not in self._masks:
            self._masks[window] = [self.mask(start, stop, window) for start, stop in self._trees]
        trees = [
            scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop], attn_mask=mask, scale=scale
            )
            for (start, stop), mask in zip(self._trees, self._masks[window], strict=True)
        ]
        return torch.cat(trees, dim=2)


def _trees(subtree_end: Tensor) -> list[tuple[int, int]]:
    ends = subtree_end.tolist()
    trees: list[tuple[int, int]] = []
    start = 0
    while start < len(ends):
        trees.append((start, ends[start]))
        start = ends[start]
    return trees


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    forest: ForestAttention,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return forest(query, key, value, scaling, sliding_window).transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
