"""Corrections: what the ratio of a token is measured from, and how much a token counts that another policy sampled.

Every importance weight is ``w = π_learner / π_sampler``, where the learner is the policy before the step's update. By
``token`` it is that of the token; by ``sequence`` it is the product over the sampled tokens of the token's call, which
weighs them all alike. A weight that is cut or set to 0 trades some bias for a variance that stays bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from agentrl.config.section import Section
from agentrl.learner.contract import Anchor, CorrectionTerms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DecoupledCorrection",
    "IcePopCorrection",
    "Level",
    "MaskedCorrection",
    "RatioCorrection",
    "TruncatedCorrection",
    "per_call",
]

Level = Literal["token", "sequence"]

_AT_THE_LEARNER = {"objective": ("clip_low", "clip_high", "dual_clip", "cap", "floor")}
"""Keys that mean nothing where the ratio is 1."""


class RatioCorrection:
    """Takes the ratio against the sampler's own log-probabilities, so that it needs no further correction.

    It is the exact importance ratio, for staleness and for numeric mismatch alike, and the clip of the objective
    bounds it (PPO, Schulman et al. 2017).
    """

    anchor = "behaviour"

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        return Anchor(terms.behaviour, terms.behaviour.new_ones(()).expand_as(terms.behaviour))


class TruncatedCorrection:
    """Takes the ratio against the learner before its update, and weighs each token by a truncated importance weight.

    The weight is ``min(w, cap)``: truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training"), in the decoupled form of Hilton et al. 2022. With one update a batch the ratio
    is 1 and an objective's clip has no effect.
    """

    class Settings(Section):
        cap: float = Field(2.0, gt=0)
        """Greatest weight of a token."""
        level: Level = "token"
        """What has a weight: each `token`, or a call's tokens together as a `sequence`."""

    WITH_ONE_UPDATE_LEAVES_WITHOUT_EFFECT: ClassVar = _AT_THE_LEARNER
    anchor = "learner"

    def __init__(self, settings: Settings) -> None:
        self._cap = settings.cap
        self.level = settings.level

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        return Anchor(terms.learner, _weight(terms, self.level).clamp(max=self._cap))


class MaskedCorrection:
    """Takes the ratio against the learner before its update, and leaves out tokens of too great a weight.

    The weight is ``w`` where ``w <= cap``, and 0 elsewhere: masked importance sampling (Liu et al. 2025, "When speed
    kills stability"), which trains nothing on what the learner's policy makes too much of.
    """

    class Settings(Section):
        cap: float = Field(2.0, gt=0)
        """Greatest weight that is still trained with."""
        level: Level = "token"
        """What has a weight: each `token`, or a call's tokens together as a `sequence`."""

    WITH_ONE_UPDATE_LEAVES_WITHOUT_EFFECT: ClassVar = _AT_THE_LEARNER
    anchor = "learner"

    def __init__(self, settings: Settings) -> None:
        self._cap = settings.cap
        self.level = settings.level

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        weight = _weight(terms, self.level)
        return Anchor(terms.learner, weight.where(weight <= self._cap, 0.0))


class IcePopCorrection:
    """Takes the ratio against the learner before its update, and leaves out tokens whose weight is out of bounds.

    The weight is ``w`` where ``low <= w <= high``, and 0 elsewhere: IcePop (Ling Team 2025, arXiv:2510.18855, section
    on IcePop), made for engines whose numerics differ from the learner's, as with mixtures of experts.
    """

    class Settings(Section):
        low: float = Field(0.5, ge=0, lt=1)
        """Least weight that is still trained with."""
        high: float = Field(5.0, gt=1)
        """Greatest weight that is still trained with."""

    WITH_ONE_UPDATE_LEAVES_WITHOUT_EFFECT: ClassVar = _AT_THE_LEARNER
    anchor = "learner"
    level: Level = "token"

    def __init__(self, settings: Settings) -> None:
        self._low = settings.low
        self._high = settings.high

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        weight = _weight(terms, self.level)
        return Anchor(terms.learner, weight.where((weight >= self._low) & (weight <= self._high), 0.0))


class DecoupledCorrection:
    """Takes the ratio against a proximal policy near the learner's, and weighs tokens by how far that is away.

    Decoupled PPO (Hilton et al. 2022, eq. 4; AReaL, Fu et al. 2025, section 5.2): the trust region lies around a
    proximal policy and not around the older one that sampled, which the weight ``min(π_proximal / π_sampler, cap)``
    makes up for. ``recomputed`` is the policy before the step's update, so that the ratio is 1 unless a step has
    several updates. ``interpolated`` is one version before it, as estimated from the age ``d`` of the token in versions
    (A-3PO, arXiv:2512.06547): ``log π_proximal = log π_sampler + (1 - 1/d) · (log π_learner - log π_sampler)``, and the
    learner's own where ``d`` is 0.
    """

    class Settings(Section):
        proximal: Literal["recomputed", "interpolated"] = "recomputed"
        """The policy that the ratio is measured from: the one before the step's update, or one version before that,
        interpolated by the version of each token."""
        cap: float = Field(2.0, gt=0)
        """Greatest weight of a token."""

    level: Level = "token"

    def __init__(self, settings: Settings) -> None:
        self._cap = settings.cap
        self._interpolated = settings.proximal == "interpolated"
        self.anchor = "between" if self._interpolated else "learner"
        self.WITH_ONE_UPDATE_LEAVES_WITHOUT_EFFECT = {} if self._interpolated else _AT_THE_LEARNER

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        proximal = terms.learner
        if self._interpolated:
            old = 1.0 / terms.age.clamp(min=1)
            between = terms.behaviour + (1.0 - old) * (terms.learner - terms.behaviour)
            proximal = terms.learner.where(terms.age == 0, between)
        return Anchor(proximal, (proximal - terms.behaviour).exp().clamp(max=self._cap))


def per_call(values: Tensor, call: Tensor, *, mean: bool) -> Tensor:
    """For each term the sum, or the mean, of ``values`` over the terms of its call; all have shape (terms,)."""
    _, index, counts = call.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    sums = values.new_zeros(counts.shape).index_add(0, index, values)
    return (sums / counts if mean else sums)[index]


def _weight(terms: CorrectionTerms, level: Level) -> Tensor:
    """The importance weight of each term, without bounds."""
    log_weight = terms.learner - terms.behaviour
    return (log_weight if level == "token" else per_call(log_weight, terms.call, mean=False)).exp()
