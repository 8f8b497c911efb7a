"""Log-probabilities over a vocabulary, from hidden states and the matrix of a plain head, on the CPU.

The logits of a pass are the largest tensor of a step. Here they are computed in blocks of rows, become probabilities
where they lie, and those become the gradient of the logits where they lie, so that no second tensor of that size is
made. As many as ``KEPT`` are kept for the backward pass; of the rest the products are computed again there, in the
memory of one block.

Axes: U distributions, N targets, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Logits", "score_tokens"]

KEPT = 1 << 27
"""Probabilities that are kept from the forward to the backward pass: half a gigabyte in float32."""
BLOCK = 1 << 25
"""Logits of one product: enough rows for the matrix to be read seldom."""
CACHED = 1 << 19
"""Logits that are made probabilities of at a time, so that they and what is computed of them stay in a core's cache."""


@dataclass(frozen=True)
class Logits:
    """``features @ weight.T / temperature``, but for the tokens that are forbidden."""

    features_UE: Tensor
    weight_VE: Tensor
    temperature_U1: Tensor | None = None
    """``None`` where all are 1."""
    forbid: Callable[[Tensor, int], None] | None = None
    """Sets the logits of forbidden tokens to the lowest number, in place, given rows of them and the index of the
    first."""


def score_tokens(logits: Logits, distribution_N: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy, in nats, of token ``token_N[k]`` under distribution ``distribution_N[k]``.

    Both have a gradient, which reaches the features and the matrix.
    """
    scores: tuple[Tensor, Tensor] = _Scores.apply(  # type: ignore[no-untyped-call]
        logits.features_UE, logits.weight_VE, logits, distribution_N, token_N
    )
    return scores


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features_UE: Tensor, weight_VE: Tensor, logits: Logits, distribution_N: Tensor, token_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(features_UE.dtype, torch.float32)
        count, vocabulary = len(features_UE), len(weight_VE)
        work = _Work(logits, _Targets(count, distribution_N, token_N))
        keeps = any(ctx.needs_input_grad)
        kept_UV = torch.empty((min(count, KEPT // vocabulary) if keeps else 0, vocabulary), dtype=exact)
        normaliser_U, entropy_U = torch.empty(count, dtype=exact), torch.empty(count, dtype=exact)
        logprob_N = torch.empty(len(token_N), dtype=exact)
        for start, block_UV in work.blocks(kept_UV):
            work.soften(start, block_UV, normaliser_U, entropy_U, logprob_N)
        if keeps:
            ctx.save_for_backward(kept_UV, normaliser_U, entropy_U, distribution_N)
            ctx.work = work
        ctx.set_materialize_grads(False)
        return logprob_N, entropy_U[distribution_N]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor | None, entropy_grad_N: Tensor | None) -> tuple[Tensor | None, ...]:
        kept_UV, normaliser_U, entropy_U, distribution_N = ctx.saved_tensors
        work: _Work = ctx.work
        features_UE, weight_VE = work.logits.features_UE, work.logits.weight_VE
        wants_features, wants_weight = ctx.needs_input_grad[:2]
        grad_features_UE = torch.empty_like(features_UE) if wants_features else None
        grad_weight_VE = torch.zeros_like(weight_VE) if wants_weight else None
        totals = [
            None if grad is None else torch.zeros_like(entropy_U).index_add_(0, distribution_N, grad)[:, None]
            for grad in (grad_N, entropy_grad_N)
        ]
        for start, block_UV in work.blocks(kept_UV, normaliser_U):
            rows = slice(start, start + len(block_UV))
            work.differentiate(start, block_UV, grad_N, totals, entropy_U)
            gradient_UV = block_UV.to(weight_VE.dtype)
            if grad_features_UE is not None:
                torch.mm(gradient_UV, weight_VE, out=grad_features_UE[rows])
            if grad_weight_VE is not None:
                grad_weight_VE.addmm_(gradient_UV.t(), features_UE[rows])
        return grad_features_UE, grad_weight_VE, None, None, None


class _Targets:
    """Which tokens are drawn from which rows."""

    def __init__(self, count: int, distribution_N: Tensor, token_N: Tensor) -> None:
        self._order_N = distribution_N.argsort(stable=True)
        self._row_N, self._token_N = distribution_N[self._order_N], token_N[self._order_N]
        self._first = torch.searchsorted(self._row_N, torch.arange(count + 1)).tolist()

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows ``[start, stop)``: indices of their targets, the row of each from ``start``, and its token."""
        some = slice(self._first[start], self._first[stop])
        return self._order_N[some], self._row_N[some] - start, self._token_N[some]


@dataclass(frozen=True)
class _Work:
    logits: Logits
    targets: _Targets

    def blocks(self, kept_UV: Tensor, normaliser_U: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks of rows with the index of their first.

        Without ``normaliser_U`` they hold logits, and with it probabilities: those that ``kept_UV`` has, in which all
        blocks lie that it has the place for, or computed again.
        """
        features_UE, weight_VE = self.logits.features_UE, self.logits.weight_VE
        count, kept = len(features_UE), len(kept_UV)
        step = max(1, BLOCK // len(weight_VE))
        spare_UV: Tensor | None = None
        start = 0
        while start < count:
            inside = start < kept
            stop = min(start + step, kept if inside else count)
            if inside:
                block_UV = kept_UV[start:stop]
            else:
                if spare_UV is None:
                    spare_UV = torch.empty((min(step, count - start), len(weight_VE)), dtype=kept_UV.dtype)
                block_UV = spare_UV[: stop - start]
            if normaliser_U is None or not inside:
                self._fill(start, block_UV)
            if normaliser_U is not None and not inside:
                for rows in _cached(block_UV):
                    some = block_UV[rows]
                    first = start + rows.start
                    some.sub_(normaliser_U[first : first + len(some), None]).exp_()
            yield start, block_UV
            start = stop

    def _fill(self, start: int, block_UV: Tensor) -> None:
        rows = slice(start, start + len(block_UV))
        features_UE, transposed = self.logits.features_UE[rows], self.logits.weight_VE.t()
        if features_UE.dtype == block_UV.dtype:
            torch.mm(features_UE, transposed, out=block_UV)
        else:
            block_UV.copy_(features_UE @ transposed)
        if self.logits.temperature_U1 is not None:
            block_UV.div_(self.logits.temperature_U1[rows].to(block_UV.dtype))
        if self.logits.forbid is not None:
            self.logits.forbid(block_UV, start)

    def soften(self, start: int, block_UV: Tensor, normaliser_U: Tensor, entropy_U: Tensor, logprob_N: Tensor) -> None:
        """Turn logits into probabilities, and note what is wanted of them."""
        exponential_UV = torch.empty_like(block_UV[: _step(block_UV)])
        for rows in _cached(block_UV):
            logits_UV = block_UV[rows]
            here = slice(start + rows.start, start + rows.start + len(logits_UV))
            highest_U1 = logits_UV.amax(-1, keepdim=True)
            raised_UV = torch.sub(logits_UV, highest_U1, out=exponential_UV[: len(logits_UV)]).exp_()
            sum_U1 = raised_UV.sum(-1, keepdim=True)
            normaliser_U[here] = (highest_U1 + sum_U1.log())[:, 0]
            which, row, token = self.targets.of(here.start, here.stop)
            logprob_N[which] = logits_UV[row, token] - normaliser_U[here][row]
            raised_UV.div_(sum_U1)
            entropy_U[here] = normaliser_U[here] - logits_UV.mul_(raised_UV).sum(-1)
            logits_UV.copy_(raised_UV)

    def differentiate(
        self,
        start: int,
        block_UV: Tensor,
        grad_N: Tensor | None,
        totals: list[Tensor | None],
        entropy_U: Tensor,
    ) -> None:
        """Turn probabilities into the gradient of the product, of which ``totals`` are those of each row's scores."""
        total_U1, entropy_total_U1 = totals
        for rows in _cached(block_UV):
            some_UV = block_UV[rows]
            here = slice(start + rows.start, start + rows.start + len(some_UV))
            surprise_UV: Tensor | None = None
            if entropy_total_U1 is not None:  # dH/dz = -p (log p + H)
                surprise_UV = torch.xlogy(some_UV, some_UV).addcmul_(some_UV, entropy_U[here, None])
            if total_U1 is None or grad_N is None:
                some_UV.zero_()
            else:
                some_UV.mul_(-total_U1[here])
                which, row, token = self.targets.of(here.start, here.stop)
                # summed one by one, unlike by advanced indexing, so that the order is always the same
                some_UV.view(-1).index_add_(0, row * some_UV.shape[1] + token, grad_N[which])
            if surprise_UV is not None and entropy_total_U1 is not None:
                some_UV.addcmul_(surprise_UV, entropy_total_U1[here], value=-1.0)
            if self.logits.temperature_U1 is not None:
                some_UV.div_(self.logits.temperature_U1[here].to(some_UV.dtype))


def _step(block_UV: Tensor) -> int:
    return max(1, CACHED // block_UV.shape[1])


def _cached(block_UV: Tensor) -> Iterator[slice]:
    step = _step(block_UV)
    return (slice(start, start + step) for start in range(0, len(block_UV), step))
