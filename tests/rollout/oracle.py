"""What the rule of staleness is held to: whether groups can be trained in time, found out by trying everything."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

from agentrl.rollout.staleness import StalenessBound

__all__ = ["trainable"]


def trainable(bound: StalenessBound, version: int, oldest: Iterable[int]) -> bool:
    """Whether the steps from the one at ``version`` on can train groups of these oldest versions, none too old."""
    return _trainable(bound, tuple(sorted(each - version for each in oldest)))


@functools.cache
def _trainable(bound: StalenessBound, ages: tuple[int, ...]) -> bool:
    """``ages`` are versions relative to the one of the next step, so that nothing is younger than 0."""
    if any(bound.max_staleness + age < 0 for age in ages):
        return False
    if len(ages) <= bound.per_step:
        return True
    left = {
        tuple(age - 1 for place, age in enumerate(ages) if place not in step)
        for step in itertools.combinations(range(len(ages)), bound.per_step)
    }
    return any(_trainable(bound, each) for each in left)
