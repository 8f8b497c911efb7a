"""What a learner's step reports, by name.

``policy/mismatch_kl`` estimates ``KL(sampler ‖ learner)`` over the sampled tokens as ``E[r - 1 - log r]`` with
``r = π_learner / π_sampler``: unbiased, never negative and of low variance (Schulman 2020, "Approximating KL
divergence", the estimator k3), computed in double precision, in which it stays so. Where sampler and learner have the
same weights it is the rounding of their logprobs, about half its square. Ratios are those of the weights before the
step's update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from agentrl.algorithms.batch import Batch

__all__ = ["PolicyMetrics", "batch_metrics"]


@dataclass(slots=True)
class PolicyMetrics:
    """Sums over the loss terms of a step, added to pass by pass and read once at its end."""

    count: int = 0
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(
        self,
        *,
        loss: torch.Tensor,
        log_ratio: torch.Tensor,
        entropy: torch.Tensor,
        clipped: torch.Tensor,
    ) -> None:
        """Add one pass: its share of the loss, and one entry a term of the others, none with a gradient."""
        self.count += len(log_ratio)
        log_ratio = log_ratio.double()
        ratio = log_ratio.exp()
        sums = {
            "policy/loss": loss,
            "policy/entropy": entropy.sum(),
            "policy/clip_fraction": clipped.sum(),
            "policy/ratio_mean": ratio.sum(),
            # Not exp(x) - 1 - x, whose rounding is larger than it is.
            "policy/mismatch_kl": (log_ratio.expm1() - log_ratio).clamp(min=0.0).sum(),
        }
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        highest = ratio.max()
        name = "policy/ratio_max"
        self._sums[name] = torch.maximum(self._sums[name], highest) if name in self._sums else highest

    def result(self) -> dict[str, float]:
        """The loss of the step, and means over its terms."""
        whole = ("policy/loss", "policy/ratio_max")
        return {name: float(value) / (1 if name in whole else self.count) for name, value in self._sums.items()}


def batch_metrics(batch: Batch, version: int) -> dict[str, float]:
    """Counts of the batch, and how many versions older than ``version`` its tokens are."""
    metrics = {
        "groups/zero_variance": float(batch.zero_variance),
        "tokens/trained": float(len(batch.terms)),
        "tokens/excluded": float(batch.excluded),
    }
    if len(batch.terms):
        age = version - batch.terms.version
        metrics |= {"staleness/mean": float(age.mean()), "staleness/max": float(age.max())}
    return metrics
