"""Normalisation: the weight of each sampled token in the loss of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from agentrl.algorithms.contract import Membership
from agentrl.config.section import Section

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats

__all__ = ["ConstantNormalisation", "SequenceNormalisation", "TokenNormalisation"]


class SequenceNormalisation:
    """Takes the mean over episodes of the mean over an episode's sampled tokens: GRPO (Shao et al. 2024, eq. 3)."""

    def __call__(self, membership: Membership) -> Floats:
        tokens = np.bincount(membership.episode)
        return 1.0 / (np.count_nonzero(tokens) * tokens[membership.episode])


class TokenNormalisation:
    """Takes the mean over all sampled tokens of the step: DAPO (Yu et al. 2025, eq. 8)."""

    def __call__(self, membership: Membership) -> Floats:
        return np.full(len(membership.episode), 1.0 / max(1, len(membership.episode)))


class ConstantNormalisation:
    """Takes the mean over episodes of their sums over tokens, divided by a constant (Liu et al. 2025, section 3.2).

    This is Dr. GRPO, which favours neither short nor long answers.
    """

    class Settings(Section):
        length: int = Field(128, ge=1)
        """The constant: a number of tokens, such as the most that an episode samples. The default is that of
        `rollout.max_tokens`."""

    def __init__(self, settings: Settings) -> None:
        self._length = settings.length

    def __call__(self, membership: Membership) -> Floats:
        episodes = max(1, np.unique(membership.episode).size)
        return np.full(len(membership.episode), 1.0 / (episodes * self._length))
