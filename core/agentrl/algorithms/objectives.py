"""Objectives: the surrogate loss of each sampled token."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from agentrl.algorithms.contract import ObjectiveLoss, ObjectiveTerms
from agentrl.config.models import Section

__all__ = ["ClipObjective"]

LARGEST = 20.0
"""Of the logarithm of a ratio."""


class ClipObjective:
    """PPO's clipped surrogate, token by token (Schulman et al. 2017, eq. 7).

    With ``r = π / π_anchor`` the loss is ``-min(r · A, clip(r, 1 - clip_low, 1 + clip_high) · A)``. Two bounds of
    their own are DAPO's clip-higher (Yu et al. 2025, section 3.1). Where ``A < 0`` nothing bounds ``r`` from above;
    there ``dual_clip`` does: the loss is at most ``-dual_clip · A`` (Ye et al. 2020, eq. 5). Ratios beyond ``e^±20``
    count as that, so that a token whose logprob was wrong cannot make the loss infinite.
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
        ratio = (terms.logprob - terms.anchor).clamp(-LARGEST, LARGEST).exp()
        bounded = ratio.clamp(self._low, self._high)
        loss = -torch.minimum(ratio * terms.advantage, bounded * terms.advantage)
        with torch.no_grad():
            clipped = torch.where(terms.advantage > 0, ratio > self._high, ratio < self._low)
        if self._dual_clip is not None:
            negative = terms.advantage < 0
            loss = torch.where(negative, torch.minimum(loss, -self._dual_clip * terms.advantage), loss)
            clipped = clipped | (negative & (ratio > self._dual_clip))
        return ObjectiveLoss(loss, clipped & (terms.advantage != 0))
