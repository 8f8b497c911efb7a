"""Log-probabilities and entropies of sampled tokens, from logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Scores", "score"]


class Scores(NamedTuple):
    """One entry a loss term."""

    logprob: Tensor
    """Natural log-probability of the sampled token, with a gradient."""
    entropy: Tensor
    """Entropy in nats of the distribution it was sampled from, without one."""


def score(logits: Tensor, row: Tensor, token: Tensor) -> Scores:
    """Score ``token[k]`` under the distribution of ``logits[row[k]]``.

    ``logits`` has shape (rows, vocabulary) and is divided by the temperature already; it is computed on in
    float32 at least.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    logprob, entropy = _Scored.apply(logits, row, token)  # type: ignore[no-untyped-call]
    return Scores(logprob, entropy)


class _Scored(torch.autograd.Function):
    """One exponential over the vocabulary serves the logprob, the entropy and the gradient."""

    @staticmethod
    def forward(ctx, logits: Tensor, row: Tensor, token: Tensor):  # type: ignore[no-untyped-def]
        normaliser = logits.logsumexp(-1)
        probability = (logits - normaliser[:, None]).exp_()
        entropy = normaliser - torch.linalg.vecdot(probability, logits)
        ctx.save_for_backward(probability, row, token)
        ctx.mark_non_differentiable(entropy := entropy[row])
        return logits[row, token] - normaliser[row], entropy

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
        probability, row, token = ctx.saved_tensors
        total = torch.zeros_like(probability[:, 0]).index_add_(0, row, grad)
        gradient = probability * -total[:, None]
        gradient.view(-1).index_add_(0, row * probability.shape[1] + token, grad)
        return gradient, None, None
