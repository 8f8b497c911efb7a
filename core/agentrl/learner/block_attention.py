"""Exact attention over blocks of one bin, on PyTorch's fused CPU kernel.

The kernel gives each block's output with the logarithm of its softmax denominator, by which the outputs of
all blocks of a query are merged; its backward takes the merged output and denominator and so gives each
block's true share of the gradient (as in blockwise attention: Dao et al. 2022, section 3; Liu et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from agentrl.learner.blocks import Block, Blocks, Tiles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["BlockAttention"]

MASKED = -1e30
"""Added to scores that are not attended to; finite, so that a row without any merges with weight 0, not NaN."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Patch(Protocol):
    """A part of the attention matrix that one call of the kernel computes.

    Values of a bin are (tokens, heads, size), positions first; the kernel's are (stack, heads, tokens, size).
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
        """Write the kernel's values of queries to their places."""
        ...


@dataclass(frozen=True, slots=True)
class _Stack:
    """``Tiles`` as tensors."""

    index: Tensor
    valid: Tensor
    places: Tensor
    """The positions of all tiles, without padding."""
    mask: Tensor | None

    @property
    def causal(self) -> bool:
        return self.mask is None

    def queries(self, values: Tensor) -> Tensor:
        return values[self.index].transpose(1, 2)

    keys = queries

    def gradients(self, values: Tensor) -> Tensor:
        return self.queries(values).masked_fill(~self.valid[:, None, :, None], 0.0)

    def put(self, values: Tensor, into: Tensor) -> None:
        into.index_copy_(0, self.places, values.transpose(1, 2)[self.valid])


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


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Of one layer; each of shape (tokens, heads, size)."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float

    def forward(self, patch: _Patch) -> tuple[Tensor, Tensor]:
        """Output of the patch, and the logarithm of its softmax denominators with a last axis of 1."""
        output, log_sum = _forward(
            patch.queries(self.query),
            patch.keys(self.key),
            patch.keys(self.value),
            0.0,
            patch.causal,
            attn_mask=patch.mask,
            scale=self.scale,
        )
        return output, log_sum[..., None]

    def backward(self, patch: _Patch, grad: Tensor, output: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The patch's share in the gradients, from the merged ``output`` and ``log_sum`` of the whole bin."""
        gradients: tuple[Tensor, Tensor, Tensor] = _backward(
            patch.gradients(grad),
            patch.queries(self.query),
            patch.keys(self.key),
            patch.keys(self.value),
            patch.queries(output),
            patch.queries(log_sum)[..., 0],
            0.0,
            patch.causal,
            attn_mask=patch.mask,
            scale=self.scale,
        )
        return gradients


class BlockAttention:
    """Attention as ``blocks`` say, for query, key and value of shape (1, heads, tokens, head size) on the CPU."""

    def __init__(self, blocks: Blocks, dtype: torch.dtype) -> None:
        self.own: list[_Patch] = [_stack(tiles, dtype) for tiles in blocks.tiles]
        self.own += [_rectangle(block, dtype) for block in blocks.own]
        self.above = [_rectangle(block, dtype) for block in blocks.above]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Shape (1, heads, tokens, head size)."""
        output: Tensor = _Attention.apply(query, key, value, self, scale)  # type: ignore[no-untyped-call]
        return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: BlockAttention, scale: float) -> Tensor:
        inputs = _inputs(query, key, value, scale)
        output = torch.empty(inputs.query.shape, dtype=query.dtype)
        exact = torch.promote_types(query.dtype, torch.float32)
        log_sum = torch.empty((*output.shape[:2], 1), dtype=exact)
        for patch in plan.own:  # between them they write every position
            for made, into in zip(inputs.forward(patch), (output, log_sum), strict=True):
                patch.put(made, into)
        for patch in plan.above:
            made, made_log_sum = (x[0].transpose(0, 1) for x in inputs.forward(patch))
            _merge(output[patch.query], log_sum[patch.query], made, made_log_sum)
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.plan, ctx.scale = plan, scale
        return output.transpose(0, 1)[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sum = ctx.saved_tensors
        inputs = _inputs(query, key, value, ctx.scale)
        merged = (grad[0].transpose(0, 1), output, log_sum)
        gradients = [torch.empty(x.shape, dtype=x.dtype) for x in (inputs.query, inputs.key, inputs.value)]
        for patch in ctx.plan.own:
            for made, into in zip(inputs.backward(patch, *merged), gradients, strict=True):
                patch.put(made, into)
        for patch in ctx.plan.above:
            places = (patch.query, patch.key, patch.key)
            for made, into, place in zip(inputs.backward(patch, *merged), gradients, places, strict=True):
                into[place] += made[0].transpose(0, 1)
        return *(x.transpose(0, 1)[None] for x in gradients), None, None


def _inputs(query: Tensor, key: Tensor, value: Tensor, scale: float) -> _Inputs:
    """From what a layer passes, (1, heads, tokens, size) each."""
    return _Inputs(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scale)


def _merge(output: Tensor, log_sum: Tensor, made: Tensor, made_log_sum: Tensor) -> None:
    """Weigh what is there and ``made`` by their softmax denominators, in place."""
    merged = torch.logaddexp(log_sum, made_log_sum)
    output *= (log_sum - merged).exp_()
    output += made * (made_log_sum - merged).exp_()
    log_sum.copy_(merged)


def _stack(tiles: Tiles, dtype: torch.dtype) -> _Stack:
    index, valid = torch.from_numpy(tiles.index), torch.from_numpy(tiles.valid)
    return _Stack(index, valid, index[valid], _added(tiles.mask, dtype))


def _rectangle(block: Block, dtype: torch.dtype) -> _Rectangle:
    mask = None if block.mask is None else _added(block.mask[None], dtype)
    return _Rectangle(block.queries, block.keys, block.causal, mask)


def _added(mask: npt.NDArray[np.bool_] | None, dtype: torch.dtype) -> Tensor | None:
    """From (stack, queries, keys), true where attended to, to what is added to the scores."""
    if mask is None:
        return None
    allowed = torch.from_numpy(mask).unsqueeze(1)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, MASKED)
