"""The learning rate that suits a model, by its size and by whether an adapter is trained in its place."""

from __future__ import annotations

import math
from itertools import pairwise

from agentrl.config.models import TrainingSection

__all__ = ["recommended_rate", "with_rate"]

_KNOWN = ((440e3, 1e-4), (134.5e6, 2e-5), (7e9, 1e-6))
"""Parameters of a model, and the rate that suits it.

The first two are measured: the bundled `tiny` learns its tasks at 1e-4 in a minute, and SmolLM2 135M one-digit sums at
2e-5 in twelve steps, while at 1e-4 it wanders for as many before it learns. The last is what others train models of 7
billion parameters with (TRL's ``GRPOConfig`` has 1e-6 as its default).
"""

_ADAPTER = 10.0
"""How many times the whole model's rate an adapter takes, whatever its rank: a factor of about ten is what Schulman and
Thinking Machines Lab found ("LoRA Without Regret", 2025). SmolLM2 135M learned one-digit sums with it, at rank 16: held
out from .14 to .71 in ten steps."""


def recommended_rate(parameters: int, *, adapter: bool = False) -> float:
    """The peak learning rate of AdamW for a model of so many ``parameters``, those under an ``adapter`` included.

    Between the sizes for which a rate is known, the logarithm of the rate goes in a straight line over the logarithm of
    the size; outside of them it stays that of the nearest. It is rounded to two significant digits.
    """
    size = min(max(float(parameters), _KNOWN[0][0]), _KNOWN[-1][0])
    for (small, before), (large, after) in pairwise(_KNOWN):
        if size <= large:
            share = math.log(size / small) / math.log(large / small)
            rate = before * (after / before) ** share
            return float(f"{rate * (_ADAPTER if adapter else 1.0):.1e}")
    raise AssertionError("a size is clipped to the known ones")


def with_rate(training: TrainingSection, parameters: int) -> TrainingSection:
    """``training`` with a number for a learning rate that is `auto`, for a model of so many ``parameters``."""
    if training.learning_rate != "auto":
        return training
    rate = recommended_rate(parameters, adapter=training.lora is not None)
    return training.model_copy(update={"learning_rate": rate})
