"""Attention over a forest, for any Hugging Face model whose layers ask for their attention by name.

Transformers looks the attention function up by the model's ``attn_implementation``; ``NAME`` is ours. It finds the
forest among the keyword arguments that a model hands down to its layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from agentrl.learner.block_attention import BlockAttention
from agentrl.learner.blocks import cut_blocks
from agentrl.learner.flex import FlexForest

if TYPE_CHECKING:
    from agentrl.algorithms.contract import Ints

__all__ = ["NAME", "ForestAttention"]

NAME = "agentrl_forest"
UNSUPPORTED = ("block_indices", "cache", "indices", "position_bias", "s_aux", "sinks", "softcap")
"""Arguments by which a layer asks for more than softmax attention."""


class ForestAttention:
    """Who attends to whom in one bin: ``j <= i < subtree_end[j]``, in a layer with a window only if near enough.

    On the CPU attention is cut into dense blocks, elsewhere it is FlexAttention; both are planned once a bin
    and kind of layer.
    """

    def __init__(self, depth: Ints, subtree_end: Ints) -> None:
        """Both of shape (tokens,)."""
        self._depth = depth
        self._subtree_end = subtree_end
        self._blocks: dict[tuple[int | None, torch.dtype], BlockAttention] = {}
        self._flex: FlexForest | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """All of shape (1, heads, tokens, head size); key and value may have fewer heads, each serving several."""
        if query.device.type != "cpu":
            return self._on_device(query.device)(query, key, value, scale, window)
        served = query.shape[1] // key.shape[1]
        if served > 1:
            key, value = key.repeat_interleave(served, dim=1), value.repeat_interleave(served, dim=1)
        return self._planned(window, query.dtype)(query, key, value, scale)

    def _on_device(self, device: torch.device) -> FlexForest:
        if self._flex is None:
            depth, subtree_end = (torch.from_numpy(x).to(device, torch.int32) for x in (self._depth, self._subtree_end))
            self._flex = FlexForest(depth, subtree_end)
        return self._flex

    def _planned(self, window: int | None, dtype: torch.dtype) -> BlockAttention:
        plan = self._blocks.get((window, dtype))
        if plan is None:
            plan = BlockAttention(cut_blocks(self._depth, self._subtree_end, window), dtype)
            self._blocks[window, dtype] = plan
        return plan


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
    **others: Any,
) -> tuple[Tensor, None]:
    """What a layer calls. Raises ``NotImplementedError`` for attention that a forest does not have."""
    asked = [name for name in UNSUPPORTED if others.get(name) is not None]
    if attention_mask is not None:
        asked.append("a mask of its own")
    if sliding_window is None and _slides(module):
        asked.append("a window that it does not tell")
    if asked:
        raise NotImplementedError(f"its attention needs {', '.join(asked)}")
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotary embeddings leave them in float32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return forest(query, key, value, scale, sliding_window).transpose(1, 2), None


def _slides(module: torch.nn.Module) -> bool:
    """Whether the configuration says that this layer has a window."""
    kinds = getattr(module.config, "layer_types", None)
    if kinds:
        return bool(kinds[module.layer_idx] == "sliding_attention")
    return getattr(module.config, "sliding_window", None) is not None


AttentionInterface.register(NAME, _attend)
