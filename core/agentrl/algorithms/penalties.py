"""Penalties: what is added to the loss of every sampled token, whatever its advantage is.

The learner calls them with tensors of shape (terms,); see ``agentrl.learner.contract``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from agentrl.algorithms.contract import Algorithm, Objection
from agentrl.config.section import Section
from agentrl.learner.contract import Penalty, PenaltyTerms

if TYPE_CHECKING:
    import torch

__all__ = ["EntropyBonus", "KLPenalty"]

_MAX_LOG_RATIO = 20.0


class KLPenalty:
    """Holds the policy near a reference: the model that the run began with, or the base under a LoRA adapter.

    With ``d = log π - log π_ref`` of a sampled token the estimators of ``KL(π ‖ π_ref)`` are ``k1 = d``,
    ``k2 = d² / 2`` and ``k3 = exp(-d) - 1 + d`` (Schulman 2020, "Approximating KL divergence"). All three are reported
    as they are. The plain gradient of ``k1`` is 0 in expectation, which holds nothing; here it has the gradient
    ``d ∇log π``, whose expectation is that of ``KL(π ‖ π_ref)`` and which ``k2`` has by itself. The gradient of
    ``k3``, that of GRPO (Shao et al. 2024, eq. 4), is in expectation that of the reverse, ``KL(π_ref ‖ π)``, as long
    as the policy is the one that sampled. Log-ratios are limited to ±20, beyond which there is no gradient.
    """

    class Settings(Section):
        coefficient: float = Field(0.01, ge=0, allow_inf_nan=False)
        """What the estimate is multiplied by before it is added to the loss; 0 only measures it."""
        estimator: Literal["k1", "k2", "k3"] = "k3"
        """`k1` is unbiased and noisy, `k2` biased and smooth, `k3` unbiased and never negative."""

    metric: ClassVar[str] = "penalty/kl"
    columns: ClassVar[tuple[str, ...]] = ("reference",)

    def __init__(self, settings: Settings) -> None:
        self.coefficient = settings.coefficient
        self._estimator = settings.estimator

    def objection(self, algorithm: Algorithm) -> Objection | None:
        return _twice(self, algorithm)

    def __call__(self, terms: PenaltyTerms) -> torch.Tensor:
        above = (terms.logprob - terms.extra["reference"]).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        if self._estimator == "k3":
            return (-above).expm1() + above
        squared = above.square() / 2
        return squared if self._estimator == "k2" else squared + (above - squared).detach()


class EntropyBonus:
    """Rewards entropy, so that the policy goes on exploring: ``-coefficient · H(π)`` is added to the loss.

    ``H`` is the exact entropy of the distribution that each token was drawn from, with its exact gradient (Williams and
    Peng 1991; PPO, Schulman et al. 2017, eq. 9). ``penalty/entropy`` reports ``H`` itself.
    """

    class Settings(Section):
        coefficient: float = Field(0.001, ge=0, allow_inf_nan=False)
        """What a nat of entropy takes off the loss."""

    metric: ClassVar[str] = "penalty/entropy"
    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        self.coefficient = -settings.coefficient

    def objection(self, algorithm: Algorithm) -> Objection | None:
        return _twice(self, algorithm)

    def __call__(self, terms: PenaltyTerms) -> torch.Tensor:
        return terms.entropy


def _twice(penalty: Penalty, algorithm: Algorithm) -> Objection | None:
    """Two penalties of one metric could not be told apart in what is reported."""
    if sum(each.metric == penalty.metric for each in algorithm.penalties) < 2:
        return None
    return Objection(f"another of algorithm.penalties reports {penalty.metric} too", "leave one of them out")
