"""Log-probabilities and entropies of sampled tokens, from what a model computes before its vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["Distributions", "Scores", "score"]

ELEMENTS = 1 << 26
"""Logits held at once. More are computed by chunks, and again in the backward pass, instead of being kept."""


class Scores(NamedTuple):
    """One entry a loss term."""

    logprob: Tensor
    """Natural log-probability of the sampled token, with a gradient."""
    entropy: Tensor
    """Entropy in nats of the distribution it was sampled from, without one."""


class Distributions(NamedTuple):
    """The ``rows`` distributions that tokens were drawn from: ``head(features) / temperature``."""

    features: Tensor
    """Shape (rows, size)."""
    temperature: Tensor | None
    """Shape (rows, 1); ``None`` where all are 1."""
    head: Callable[[Tensor], Tensor]
    """From features to logits, (…, size) to (…, vocabulary)."""
    vocabulary: int

    def chunk(self, start: int, stop: int) -> Distributions:
        temperature = None if self.temperature is None else self.temperature[start:stop]
        return self._replace(features=self.features[start:stop], temperature=temperature)

    def logits(self) -> Tensor:
        """Shape (rows, vocabulary), in float32 at least."""
        logits = self.head(self.features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.temperature is None else logits / self.temperature.to(logits.dtype)


def score(distributions: Distributions, row: Tensor, token: Tensor) -> Scores:
    """Score ``token[k]`` under distribution ``row[k]``; the gradient reaches features and head."""
    rows, size = len(distributions.features), max(1, ELEMENTS // distributions.vocabulary)
    if rows <= size:
        return _score(distributions, row, token)
    order: list[Tensor] = []
    scores: list[Scores] = []
    for start in range(0, rows, size):
        here = torch.nonzero((row >= start) & (row < start + size))[:, 0]
        chunk = distributions.chunk(start, start + size)
        scores.append(checkpoint(_score, chunk, row[here] - start, token[here], use_reentrant=False))
        order.append(here)
    place = torch.cat(order).argsort()
    logprob, entropy = (torch.cat(column)[place] for column in zip(*scores, strict=True))
    return Scores(logprob, entropy)


def _score(distributions: Distributions, row: Tensor, token: Tensor) -> Scores:
    logprob, entropy = _Scored.apply(distributions.logits(), row, token)  # type: ignore[no-untyped-call]
    return Scores(logprob, entropy)


class _Scored(torch.autograd.Function):
    """One exponential over the vocabulary serves the logprob, the entropy and the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        normaliser = logits.logsumexp(-1)
        probability = (logits - normaliser[:, None]).exp_()
        entropy = (normaliser - torch.linalg.vecdot(probability, logits))[row]
        ctx.save_for_backward(probability, row, token)
        ctx.mark_non_differentiable(entropy)
        return logits[row, token] - normaliser[row], entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        probability, row, token = ctx.saved_tensors
        total = torch.zeros_like(probability[:, 0]).index_add_(0, row, grad)
        gradient = probability * -total[:, None]
        # summed one by one, unlike by advanced indexing, so that the order is always the same
        gradient.view(-1).index_add_(0, row * probability.shape[1] + token, grad)
        return gradient, None, None
