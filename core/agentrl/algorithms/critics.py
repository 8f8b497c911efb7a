"""Critics: the loss of the value head, which is handed to the learner; see ``agentrl.learner.contract``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from agentrl.algorithms.contract import Algorithm, Objection
from agentrl.config.section import Section
from agentrl.learner.contract import ValueTerms

if TYPE_CHECKING:
    import torch

__all__ = ["ClipCritic"]


class ClipCritic:
    """The squared error of the value, token by token, with the clip of PPO's implementations.

    ``½ max((V - R)², (clip(V, V_old - clip, V_old + clip) - R)²)``, where ``V_old`` is the value before the step and
    ``R`` the return (Schulman et al. 2016, section 5; the clip as in Engstrom et al. 2020, "Implementation matters",
    section 3). The gradient reaches the policy's weights too, by the hidden states that the head reads.
    """

    class Settings(Section):
        coefficient: float = Field(0.5, ge=0, allow_inf_nan=False)
        """What the loss is multiplied by before it is added to the policy's."""
        clip: float | None = Field(0.2, gt=0)
        """How far from the value before the step a token's value is moved, in units of reward; null for no bound. It
        matters where a step makes several updates."""
        learning_rate_factor: float = Field(10.0, gt=0, allow_inf_nan=False)
        """The learning rate of the value head over that of the policy."""

    def __init__(self, settings: Settings) -> None:
        self.coefficient = settings.coefficient
        self.learning_rate_factor = settings.learning_rate_factor
        self._clip = settings.clip
        self._is_clip_said = settings.clip is not None and "clip" in settings.model_fields_set

    def objection(self, algorithm: Algorithm) -> Objection | None:
        """The first update of a step finds every value where it was before, and moves it within any bound."""
        if algorithm.updates > 1 or not self._is_clip_said:
            return None
        return Objection(
            "its clip bounds how far values move within a step, and a step makes one update",
            "set training.minibatches above 1, or leave algorithm.critic.clip out",
        )

    def __call__(self, terms: ValueTerms) -> torch.Tensor:
        target = terms.extra["return"]
        error = (terms.value - target).square()
        if self._clip is not None:
            before = terms.extra["value"]
            error = error.maximum((terms.value.clamp(before - self._clip, before + self._clip) - target).square())
        return error / 2
