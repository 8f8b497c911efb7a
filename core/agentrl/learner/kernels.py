"""Attention kernels for the CPU that give the softmax denominators of their output too.

Attention in blocks needs the logarithm of those denominators, and no public function of PyTorch has it on the CPU. So
the fused kernel behind ``scaled_dot_product_attention`` is called by its internal name. Before its first use it is
checked against ``plain_forward`` and ``plain_backward``, which are made of public functions alone; where it is missing
or gives other values, those take its place, at about half the speed of a step.

Axes: S stacked blocks, H heads, Q queries, K keys, D head size. Query, output and their gradients are SHQD, key and
value SHKD, the logarithms SHQ. Key and value may have fewer heads, each of which then serves several of the query's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["MASKED", "AttentionKernel", "attention_kernel", "plain_backward", "plain_forward"]

MASKED = -1e30
"""Added to scores that are not attended to; finite, so that a row without any merges with weight 0, not NaN."""
FUSED = "_scaled_dot_product_flash_attention_for_cpu"
"""Name of the fused kernel among PyTorch's operators."""
QUERIES = 512
"""Queries whose scores the plain kernel holds at once."""


class AttentionKernel(NamedTuple):
    """Softmax attention of a stack of blocks, with the arguments of PyTorch's own CPU kernel."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


def plain_forward(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, *, attn_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the attention output (SHQD) and the logarithm of its softmax denominators (SHQ), from public functions.

    ``dropout`` must be 0.
    """
    key, value = (_for_all(query, x) for x in (key, value))
    outputs: list[Tensor] = []
    log_sums: list[Tensor] = []
    for rows in _query_slices(query):
        scores = _scores(query, key, rows, causal, attn_mask, scale)
        log_sums.append(scores.logsumexp(-1))
        outputs.append((scores - log_sums[-1][..., None]).exp_() @ value)
    return torch.cat(outputs, 2), torch.cat(log_sums, 2)


def plain_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    dropout: float,
    causal: bool,
    *,
    attn_mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; the arguments are those of ``plain_forward`` and its results.

    The formula is that of Dao et al. 2022, algorithm 4.
    """
    heads = key.shape[1]
    key, value = (_for_all(query, x) for x in (key, value))
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows in _query_slices(query):
        scores = _scores(query, key, rows, causal, attn_mask, scale)
        probability = (scores - log_sum[:, :, rows, None]).exp_().to(value.dtype)
        inner = (grad[:, :, rows] * output[:, :, rows]).sum(-1, keepdim=True)
        grad_scores = probability * (grad[:, :, rows] @ value.mT - inner) * scale
        grad_query[:, :, rows] = grad_scores @ key
        grad_key += grad_scores.mT @ query[:, :, rows]
        grad_value += probability.mT @ grad[:, :, rows]
    stack, _, keys, size = key.shape
    shared = (stack, heads, -1, keys, size)
    return grad_query, grad_key.view(shared).sum(2), grad_value.view(stack, heads, -1, keys, value.shape[3]).sum(2)


def _for_all(query: Tensor, values: Tensor) -> Tensor:
    """Keys or values for each head of the query."""
    return values.repeat_interleave(query.shape[1] // values.shape[1], dim=1)


def _query_slices(query: Tensor) -> list[slice]:
    return [slice(start, start + QUERIES) for start in range(0, query.shape[2], QUERIES)]


def _scores(query: Tensor, key: Tensor, rows: slice, causal: bool, attn_mask: Tensor | None, scale: float) -> Tensor:
    scores = query[:, :, rows] @ key.mT * scale
    if attn_mask is not None:
        scores = scores + attn_mask[:, :, rows]
    if causal:
        later = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu_(1)[rows]
        scores = scores.masked_fill(later, MASKED)
    return scores


def fused_kernel() -> AttentionKernel:
    """Return PyTorch's own kernel. Raises ``AttributeError`` where this version has none of that name."""
    operators: Any = torch.ops.aten
    return AttentionKernel(getattr(operators, FUSED), getattr(operators, f"{FUSED}_backward"))


@cache
def attention_kernel() -> AttentionKernel:
    """Return the fused kernel where it does what it is used for, else the plain one, with a warning."""
    plain = AttentionKernel(plain_forward, plain_backward)
    try:
        fused = fused_kernel()
        if _agree(fused, plain):
            return fused
        reason = "gives other values"
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = f"is not called as it was: {type(error).__name__}"
    warnings.warn(
        f"the CPU attention kernel of PyTorch {torch.__version__} {reason}, so the learner uses a slower one; "
        "agentrl's constraints.txt names a version that it was tested with",
        stacklevel=2,
    )
    return plain


def _agree(one: AttentionKernel, other: AttentionKernel) -> bool:
    """Whether two kernels give the same output, denominators and gradients, with a causal mask and with another."""
    generator = torch.Generator().manual_seed(0)
    query, grad = (torch.randn(2, 4, 5, 8, generator=generator) for _ in range(2))
    key, value = (torch.randn(2, 2, 5, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(2, 1, 5, 5).masked_fill_(torch.rand(2, 1, 5, 5, generator=generator) < 0.3, MASKED)
    for causal, added in ((True, None), (False, None), (False, mask)):
        made = []
        for kernel in (one, other):
            output, log_sum = kernel.forward(query, key, value, 0.0, causal, attn_mask=added, scale=0.3)
            # a denominator that more keys have been merged into, as in a bin of several blocks
            merged = (grad, query, key, value, 0.5 * output, log_sum + 0.7)
            made.append([output, log_sum, *kernel.backward(*merged, 0.0, causal, attn_mask=added, scale=0.3)])
        if not all(torch.allclose(left, right, rtol=1e-3, atol=1e-4) for left, right in zip(*made, strict=True)):
            return False
    return True
