"""The loss of a sampled token: how off-policy tokens are corrected for, and the objective that is minimised.

Both kinds of part are handed to the learner, which calls them with tensors of shape (terms,); see
``agentrl.learner.contract``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from agentrl.config.models import Section
from agentrl.learner.contract import Anchor, CorrectionTerms, ObjectiveLoss, ObjectiveTerms

if TYPE_CHECKING:
    pass

__all__ = ["ClipObjective", "RatioCorrection", "TruncatedCorrection"]

_MAX_LOG_RATIO = 20.0


class RatioCorrection:
    """Takes the ratio against the sampler's own log-probabilities, so that it needs no further correction.

    It is the exact importance ratio, for staleness and for numeric mismatch alike, and the clip of the objective
    bounds it (PPO, Schulman et al. 2017).
    """

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        return Anchor(terms.behaviour, terms.behaviour.new_ones(()).expand_as(terms.behaviour))


class TruncatedCorrection:
    """Takes the ratio against the learner before its update, and weighs each token by a truncated importance weight.

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

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        return Anchor(terms.learner, (terms.learner - terms.behaviour).exp().clamp(max=self._cap))


class ClipObjective:
    """PPO's clipped surrogate, token by token (Schulman et al. 2017, eq. 7).

    With ``r = π / π_anchor`` the loss is ``-min(r · A, clip(r, 1 - clip_low, 1 + clip_high) · A)``. Two separate bounds
    are DAPO's clip-higher (Yu et al. 2025, section 3.1). Where ``A < 0`` the surrogate does not bound ``r`` from above;
    there ``dual_clip`` does: the loss is at most ``-dual_clip · A`` (Ye et al. 2020, eq. 5). Ratios are limited to
    ``e^±20``, so that a token whose log-probability is wrong cannot make the loss infinite.
    """

    class Settings(Section):
        clip_low: float = Field(0.2, ge=0, le=1)
        """How far below 1 the ratio still moves a token whose advantage is negative."""
        clip_high: float = Field(0.2, ge=0)
        """How far above 1 the ratio still moves a token whose advantage is positive."""
        dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
        """Greatest ratio of a token whose advantage is negative; null for none."""

    def __init__(self, settings: Settings) -> None:
        self._low = 1.0 - settings.clip_low
        self._high = 1.0 + settings.clip_high
        self._dual_clip = settings.dual_clip

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        advantage = terms.advantage
        ratio = (terms.logprob - terms.anchor).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
        bounded = ratio.clamp(self._low, self._high)
        gain = (ratio * advantage).minimum(bounded * advantage)
        held = ratio.detach()
        clipped = ((advantage > 0) & (held > self._high)) | ((advantage < 0) & (held < self._low))
        if self._dual_clip is not None:
            negative = advantage < 0
            gain = gain.where(~negative, gain.maximum(self._dual_clip * advantage))
            clipped = clipped | (negative & (held > self._dual_clip))
        return ObjectiveLoss(-gain, clipped)
