"""Exact attention over blocks of one bin, on PyTorch's fused CPU kernel.

The kernel gives each block's output with the logarithm of its softmax denominator, by which the outputs of
all blocks of a query are merged; its backward takes the merged output and denominator and so gives each
block's true share of the gradient (as in blockwise attention: Dao et al. 2022, section 3; Liu et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agentrl.training.blocks import Block, Blocks, Tiles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["BlockAttention"]

MASKED = -1e30
"""Added to scores that are not attended to; finite, so that a row without any merges with weight 0, not NaN."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class _Tiles:
    """``blocks.Tiles`` as tensors."""

    index: Tensor
    valid: Tensor
    places: Tensor
    """The positions of the tiles without padding, in order."""
    mask: Tensor | None

    def gather(self, values: Tensor) -> Tensor:
        """(tokens, heads, size) to (tiles, heads, tile, size)."""
        return values[self.index].transpose(1, 2)

    def put(self, values: Tensor, into: Tensor) -> None:
        """(tiles, heads, tile, size) back to their places in (tokens, heads, size)."""
        into.index_copy_(0, self.places, values.transpose(1, 2)[self.valid])


@dataclass(frozen=True, slots=True)
class _Block:
    """``blocks.Block`` with its mask as a tensor."""

    queries: slice
    keys: slice
    causal: bool
    mask: Tensor | None


class BlockAttention:
    """Attention as ``blocks`` say, for query, key and value of shape (1, heads, tokens, head size) on the CPU."""

    def __init__(self, blocks: Blocks, dtype: torch.dtype) -> None:
        self.tiles = [_tiles(tiles, dtype) for tiles in blocks.tiles]
        self.own = [_block(block, dtype) for block in blocks.own]
        self.above = [_block(block, dtype) for block in blocks.above]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Shape (1, heads, tokens, head size)."""
        output: Tensor = _Attention.apply(query, key, value, self, scale)  # type: ignore[no-untyped-call]
        return output


class _Attention(torch.autograd.Function):
    """Inside, tensors are (tokens, heads, size): positions first, as blocks slice them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: BlockAttention, scale: float) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        output = torch.empty(q.shape, dtype=q.dtype)
        normaliser = torch.empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
        for tiles in plan.tiles:
            made, log_sum = _forward(
                tiles.gather(q),
                tiles.gather(k),
                tiles.gather(v),
                0.0,
                tiles.mask is None,
                attn_mask=tiles.mask,
                scale=scale,
            )
            tiles.put(made, output)
            tiles.put(log_sum[..., None], normaliser[..., None])
        for block in plan.own:
            output[block.queries], normaliser[block.queries] = _block_forward(block, q, k, v, scale)
        for block in plan.above:
            _merge(output[block.queries], normaliser[block.queries], *_block_forward(block, q, k, v, scale))
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.plan, ctx.scale = plan, scale
        return output.transpose(0, 1)[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        q, k, v, g = (x[0].transpose(0, 1) for x in (query, key, value, grad))
        saved = (q, k, v, g, output, normaliser)
        gradients = [torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v)]
        for tiles in ctx.plan.tiles:
            for made, into in zip(_tiles_backward(tiles, *saved, ctx.scale), gradients, strict=True):
                tiles.put(made, into)
        for block in ctx.plan.own:
            for made, into in zip(_block_backward(block, *saved, ctx.scale), gradients, strict=True):
                into[block.queries] = made
        for block in ctx.plan.above:
            spans = (block.queries, block.keys, block.keys)
            for made, into, span in zip(_block_backward(block, *saved, ctx.scale), gradients, spans, strict=True):
                into[span] += made
        return *(x.transpose(0, 1)[None] for x in gradients), None, None


def _heads_first(values: Tensor) -> Tensor:
    """(tokens, heads, size) to (1, heads, tokens, size)."""
    return values.transpose(0, 1)[None]


def _block_forward(block: _Block, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    made, log_sum = _forward(
        _heads_first(q[block.queries]),
        _heads_first(k[block.keys]),
        _heads_first(v[block.keys]),
        0.0,
        block.causal,
        attn_mask=block.mask,
        scale=scale,
    )
    return made[0].transpose(0, 1), log_sum[0].transpose(0, 1)


def _merge(output: Tensor, normaliser: Tensor, made: Tensor, log_sum: Tensor) -> None:
    """Weigh what is there and ``made`` by their softmax denominators, in place."""
    merged = torch.logaddexp(normaliser, log_sum)
    output *= (normaliser - merged).exp_()[..., None]
    output += made * (log_sum - merged).exp_()[..., None]
    normaliser.copy_(merged)


def _block_backward(
    block: _Block, q: Tensor, k: Tensor, v: Tensor, g: Tensor, output: Tensor, normaliser: Tensor, scale: float
) -> list[Tensor]:
    gradients = _backward(
        _heads_first(g[block.queries]),
        _heads_first(q[block.queries]),
        _heads_first(k[block.keys]),
        _heads_first(v[block.keys]),
        _heads_first(output[block.queries]),
        normaliser[block.queries].transpose(0, 1)[None],
        0.0,
        block.causal,
        attn_mask=block.mask,
        scale=scale,
    )
    return [x[0].transpose(0, 1) for x in gradients]


def _tiles_backward(
    tiles: _Tiles, q: Tensor, k: Tensor, v: Tensor, g: Tensor, output: Tensor, normaliser: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    padding = ~tiles.valid[:, None, :, None]
    gradients: tuple[Tensor, Tensor, Tensor] = _backward(
        tiles.gather(g).masked_fill(padding, 0.0),
        tiles.gather(q),
        tiles.gather(k),
        tiles.gather(v),
        tiles.gather(output),
        normaliser[tiles.index].transpose(1, 2),
        0.0,
        tiles.mask is None,
        attn_mask=tiles.mask,
        scale=scale,
    )
    return gradients


def _tiles(tiles: Tiles, dtype: torch.dtype) -> _Tiles:
    index, valid = torch.from_numpy(tiles.index), torch.from_numpy(tiles.valid)
    return _Tiles(index, valid, index[valid], _added(tiles.mask, dtype))


def _block(block: Block, dtype: torch.dtype) -> _Block:
    return _Block(
        block.queries, block.keys, block.causal, _added(None if block.mask is None else block.mask[None], dtype)
    )


def _added(mask: npt.NDArray[np.bool_] | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores: (tiles, queries, keys) to (tiles, 1, queries, keys)."""
    if mask is None:
        return None
    allowed = torch.from_numpy(mask).unsqueeze(1)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, MASKED)
