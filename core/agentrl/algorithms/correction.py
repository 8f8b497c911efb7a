"""Off-policy correction: what the ratio is measured from where sampler and learner differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from agentrl.algorithms.contract import Anchor
from agentrl.config.models import Section

if TYPE_CHECKING:
    import torch

__all__ = ["RatioCorrection", "TruncatedCorrection"]


class RatioCorrection:
    """The ratio is taken against the sampler's own logprobs, and so corrects by itself.

    It is the exact importance ratio, for staleness and for numeric mismatch alike, and the objective's
    clip is what bounds it (PPO, Schulman et al. 2017).
    """

    def __call__(self, learner: torch.Tensor, behaviour: torch.Tensor) -> Anchor:
        return Anchor(behaviour, behaviour.new_ones(()).expand_as(behaviour))


class TruncatedCorrection:
    """The ratio is taken against the learner before its update; a truncated weight makes up for the rest.

    The weight is ``min(π_learner / π_sampler, cap)``: truncated importance sampling (Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training"), in the decoupled form of
    Hilton et al. 2022. With one update a batch the ratio is 1 and an objective's clip has no effect.
    """

    class Settings(Section):
        cap: float = Field(2.0, gt=0)
        """Greatest weight of a token."""

    LEAVES_WITHOUT_EFFECT: ClassVar = {"objective": ("clip_low", "clip_high", "dual_clip")}
    """Keys of other slots that mean nothing where the ratio is 1."""

    def __init__(self, settings: Settings) -> None:
        self._cap = settings.cap

    def __call__(self, learner: torch.Tensor, behaviour: torch.Tensor) -> Anchor:
        return Anchor(learner, (learner - behaviour).exp().clamp(max=self._cap))
