"""Attention over a forest, for any Hugging Face model whose layers ask for their attention by name.

Transformers looks the attention function up by the model's ``attn_implementation``; ``NAME`` is ours. It finds the
forest among the keyword arguments that a model hands down to its layers. Position ``i`` attends to ``j`` where
``j <= i < subtree_end[j]`` and, in a layer with a window, ``depth[i] - depth[j] < window``.

On accelerators this is FlexAttention with a mask made from those two vectors. On the CPU attention is computed block by
block, so that what does not attend to each other costs nothing. The fused CPU kernel gives each block's output with the
logarithm of its softmax denominator, by which the outputs of all blocks of a query are merged; its backward takes the
merged output and denominator and so gives each block's true share of the gradient (as in blockwise attention: Dao et
al. 2022, section 3; Liu et al. 2023). See ``agentrl.learner.kernels``.

Axes: T positions of a bin, H heads, D head size; S stacked blocks, Q queries, K keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from agentrl.learner.kernels import MASKED, attention_kernel
from agentrl.learner.packing import Block, Blocks, Tiles, cut_blocks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from agentrl.learner.contract import Ints

__all__ = ["NAME", "BlockAttention", "FlexForest", "ForestAttention"]

NAME = "agentrl_forest"
UNSUPPORTED = ("block_indices", "cache", "indices", "position_bias", "s_aux", "sinks", "softcap")
"""Arguments by which a layer asks for more than softmax attention."""


class ForestAttention:
    """Attention of one bin, prepared once for each kind of layer."""

    def __init__(self, depth_T: Ints, subtree_end_T: Ints) -> None:
        self._depth_T = depth_T
        self._subtree_end_T = subtree_end_T
        self._blocks: dict[tuple[int | None, torch.dtype], BlockAttention] = {}
        self._flex: FlexForest | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """Return the attention output; it and the arguments have shape (1, heads, tokens, head size).

        Key and value may have fewer heads than the query, each of which then serves several.
        """
        if query.device.type != "cpu":
            return self._on_device(query.device)(query, key, value, scale, window)
        return self._in_blocks(window, query.dtype)(query, key, value, scale)

    def _on_device(self, device: torch.device) -> FlexForest:
        if self._flex is None:
            vectors = (torch.from_numpy(x).to(device, torch.int32) for x in (self._depth_T, self._subtree_end_T))
            self._flex = FlexForest(*vectors)
        return self._flex

    def _in_blocks(self, window: int | None, dtype: torch.dtype) -> BlockAttention:
        if (window, dtype) not in self._blocks:
            blocks = cut_blocks(self._depth_T, self._subtree_end_T, window)
            self._blocks[window, dtype] = BlockAttention(blocks, dtype)
        return self._blocks[window, dtype]


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
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings in float32 may have left them so
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return forest(query, key, value, scale, sliding_window).transpose(1, 2), None


def _slides(module: torch.nn.Module) -> bool:
    """Whether the configuration says that this layer has a window."""
    kinds = getattr(module.config, "layer_types", None)
    if kinds:
        return bool(kinds[module.layer_idx] == "sliding_attention")
    return getattr(module.config, "sliding_window", None) is not None


AttentionInterface.register(NAME, _attend)


class FlexForest:
    """FlexAttention over one bin; ``depth_T`` and ``subtree_end_T`` are on the device of the queries to come."""

    def __init__(self, depth_T: Tensor, subtree_end_T: Tensor) -> None:
        self._depth_T = depth_T
        self._subtree_end_T = subtree_end_T
        self._masks: dict[int | None, BlockMask] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """As ``ForestAttention``."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        attend = _flex_attention(query.device.type)
        output: Tensor = attend(
            query, key, value, block_mask=self._masks[window], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return output

    def _mask(self, window: int | None) -> BlockMask:
        depth_T, subtree_end_T = self._depth_T, self._subtree_end_T

        def in_tree(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < subtree_end_T[key])

        def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert window is not None
            return in_tree(batch, head, query, key) & (depth_T[query] - depth_T[key] < window)

        size = len(depth_T)
        return create_block_mask(in_tree if window is None else in_window, None, None, size, size, depth_T.device)


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    """Compiled, once for all lengths, where it trains; the plain function holds every score in memory."""
    attend: Any = flex_attention
    return attend if device == "cpu" else torch.compile(attend, dynamic=True)


class BlockAttention:
    """Attention of one bin on the CPU, in the blocks that ``cut_blocks`` made of it."""

    def __init__(self, blocks: Blocks, dtype: torch.dtype) -> None:
        self.own: list[_Patch] = [_stack(tiles, dtype) for tiles in blocks.tiles]
        self.own += [_rectangle(block, dtype) for block in blocks.own]
        self.above = [_rectangle(block, dtype) for block in blocks.above]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention output; it and the arguments have shape (1, heads, tokens, head size)."""
        output: Tensor = _BlockAttention.apply(query, key, value, self, scale)  # type: ignore[no-untyped-call]
        return output


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: BlockAttention, scale: float) -> Tensor:
        inputs = _inputs(query, key, value, scale)
        output_THD = torch.empty(inputs.query_THD.shape, dtype=query.dtype)
        exact = torch.promote_types(query.dtype, torch.float32)
        log_sum_TH1 = torch.empty((*output_THD.shape[:2], 1), dtype=exact)
        for patch in blocks.own:  # between them they write every position
            for made, into in zip(inputs.forward(patch), (output_THD, log_sum_TH1), strict=True):
                patch.put(made, into)
        for patch in blocks.above:
            made_QHD, made_log_sum_QH1 = (x[0].transpose(0, 1) for x in inputs.forward(patch))
            _merge(output_THD[patch.query], log_sum_TH1[patch.query], made_QHD, made_log_sum_QH1)
        ctx.save_for_backward(query, key, value, output_THD, log_sum_TH1)
        ctx.blocks, ctx.scale = blocks, scale
        return output_THD.transpose(0, 1)[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output_THD, log_sum_TH1 = ctx.saved_tensors
        inputs = _inputs(query, key, value, ctx.scale)
        merged = (grad[0].transpose(0, 1), output_THD, log_sum_TH1)
        originals = (inputs.query_THD, inputs.key_THD, inputs.value_THD)
        gradients = [torch.empty(x.shape, dtype=x.dtype) for x in originals]
        for patch in ctx.blocks.own:
            for made, into in zip(inputs.backward(patch, *merged), gradients, strict=True):
                patch.put(made, into)
        for patch in ctx.blocks.above:
            targets = (patch.query, patch.key, patch.key)
            for made, into, positions in zip(inputs.backward(patch, *merged), gradients, targets, strict=True):
                into[positions] += made[0].transpose(0, 1)
        return *(x.transpose(0, 1)[None] for x in gradients), None, None


def _merge(output_QHD: Tensor, log_sum_QH1: Tensor, made_QHD: Tensor, made_log_sum_QH1: Tensor) -> None:
    """Weigh what is there and what was made by their softmax denominators, in place."""
    merged = torch.logaddexp(log_sum_QH1, made_log_sum_QH1)
    output_QHD *= (log_sum_QH1 - merged).exp_()
    output_QHD += made_QHD * (made_log_sum_QH1 - merged).exp_()
    log_sum_QH1.copy_(merged)


class _Patch(Protocol):
    """A part of the attention matrix that one call of the kernel computes.

    Values of a bin have positions first (THD, TH1); the kernel's are stacks of blocks with heads first (SHQD, SHQ1).
    """

    @property
    def causal(self) -> bool: ...

    @property
    def mask(self) -> Tensor | None:
        """What is added to the scores: (stack, 1, queries, keys)."""
        ...

    def queries(self, values: Tensor) -> Tensor: ...

    def keys(self, values: Tensor) -> Tensor: ...

    def gradients(self, values: Tensor) -> Tensor:
        """Like ``queries``, and 0 where it is padding."""
        ...

    def put(self, values: Tensor, into: Tensor) -> None:
        """Write the kernel's values of queries to their positions."""
        ...


@dataclass(frozen=True, slots=True)
class _Stack:
    """``Tiles`` as tensors."""

    index_SQ: Tensor
    valid_SQ: Tensor | None
    """``None`` where nothing is padding."""
    positions: Tensor
    """Those of all tiles, without padding."""
    mask: Tensor | None

    @property
    def causal(self) -> bool:
        return self.mask is None

    def queries(self, values: Tensor) -> Tensor:
        # copies whole positions, unlike indexing
        gathered = values.index_select(0, self.index_SQ.view(-1))
        return gathered.view(*self.index_SQ.shape, *values.shape[1:]).transpose(1, 2)

    keys = queries

    def gradients(self, values: Tensor) -> Tensor:
        gathered = self.queries(values)
        return gathered if self.valid_SQ is None else gathered.masked_fill_(~self.valid_SQ[:, None, :, None], 0.0)

    def put(self, values: Tensor, into: Tensor) -> None:
        values = values.transpose(1, 2)
        into.index_copy_(0, self.positions, values.flatten(0, 1) if self.valid_SQ is None else values[self.valid_SQ])


@dataclass(frozen=True, slots=True)
class _Rectangle:
    """A ``Block`` with its mask as a tensor."""

    query: slice
    key: slice
    causal: bool
    mask: Tensor | None

    def queries(self, values: Tensor) -> Tensor:
        return values[self.query].transpose(0, 1)[None]

    def keys(self, values: Tensor) -> Tensor:
        return values[self.key].transpose(0, 1)[None]

    gradients = queries

    def put(self, values: Tensor, into: Tensor) -> None:
        into[self.query] = values[0].transpose(0, 1)


def _stack(tiles: Tiles, dtype: torch.dtype) -> _Stack:
    index_SQ, valid_SQ = torch.from_numpy(tiles.index), torch.from_numpy(tiles.valid)
    padded = None if bool(valid_SQ.all()) else valid_SQ
    return _Stack(index_SQ, padded, index_SQ[valid_SQ], _added(tiles.mask, dtype))


def _rectangle(block: Block, dtype: torch.dtype) -> _Rectangle:
    mask = None if block.mask is None else _added(block.mask[None], dtype)
    return _Rectangle(block.queries, block.keys, block.causal, mask)


def _added(mask_SQK: npt.NDArray[np.bool_] | None, dtype: torch.dtype) -> Tensor | None:
    """From a mask that is true where attended to, to what is added to the scores: (stack, 1, queries, keys)."""
    if mask_SQK is None:
        return None
    allowed = torch.from_numpy(mask_SQK).unsqueeze(1)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, MASKED)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Of one layer."""

    query_THD: Tensor
    key_THD: Tensor
    value_THD: Tensor
    scale: float

    def forward(self, patch: _Patch) -> tuple[Tensor, Tensor]:
        """Output of the patch (SHQD), and the logarithm of its softmax denominators (SHQ1)."""
        output_SHQD, log_sum_SHQ = attention_kernel().forward(
            patch.queries(self.query_THD),
            patch.keys(self.key_THD),
            patch.keys(self.value_THD),
            0.0,
            patch.causal,
            attn_mask=patch.mask,
            scale=self.scale,
        )
        return output_SHQD, log_sum_SHQ[..., None]

    def backward(
        self, patch: _Patch, grad_THD: Tensor, output_THD: Tensor, log_sum_TH1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The patch's share in the gradients, from the merged output and denominator of the whole bin."""
        gradients: tuple[Tensor, Tensor, Tensor] = attention_kernel().backward(
            patch.gradients(grad_THD),
            patch.queries(self.query_THD),
            patch.keys(self.key_THD),
            patch.keys(self.value_THD),
            patch.queries(output_THD),
            patch.queries(log_sum_TH1)[..., 0],
            0.0,
            patch.causal,
            attn_mask=patch.mask,
            scale=self.scale,
        )
        return gradients


def _inputs(query: Tensor, key: Tensor, value: Tensor, scale: float) -> _Inputs:
    """From what a layer passes, (1, heads, tokens, size) each."""
    return _Inputs(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scale)
