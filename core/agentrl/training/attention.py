"""Attention over a forest, for any Hugging Face model whose layers ask for their attention by name.

Transformers looks the attention function up by the model's ``attn_implementation``; ``NAME`` is ours. It finds the
forest among the keyword arguments that a model hands down to its layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from agentrl.training.block_attention import BlockAttention
from agentrl.training.blocks import cut_blocks

if TYPE_CHECKING:
    from agentrl.training.contract import Ints

__all__ = ["NAME", "ForestAttention"]

NAME = "agentrl_forest"


class ForestAttention:
    """Who attends to whom in one bin: ``j <= i < subtree_end[j]``, in a layer with a window only if near enough."""

    def __init__(self, depth: Ints, subtree_end: Ints) -> None:
        self._depth = depth
        self._subtree_end = subtree_end
        self._plans: dict[tuple[int | None, torch.dtype], BlockAttention] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """All of shape (1, heads, tokens, head size)."""
        plan = self._plans.get((window, query.dtype))
        if plan is None:
            plan = BlockAttention(cut_blocks(self._depth, self._subtree_end, window), query.dtype)
            self._plans[window, query.dtype] = plan
        return plan(query, key, value, scale)


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
    return forest(query, key, value, scaling or query.shape[-1] ** -0.5, sliding_window).transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
