"""The learning rate over a run."""

from __future__ import annotations

import math

from agentrl.config.models import TrainingSection

__all__ = ["learning_rate"]


def learning_rate(training: TrainingSection, step: int) -> float:
    """The learning rate of optimiser step ``step``, counted from 0.

    It rises linearly over ``warmup_steps``, so that the first step already learns; then it stays, or falls
    along a line or half a cosine that would reach zero at ``steps``.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / (training.warmup_steps + 1)
    left = max(1, training.steps - training.warmup_steps)
    progress = min(1.0, (step - training.warmup_steps) / left)
    if training.schedule == "linear":
        return training.learning_rate * (1.0 - progress)
    if training.schedule == "cosine":
        return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return training.learning_rate
