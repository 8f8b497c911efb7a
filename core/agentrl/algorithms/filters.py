"""Filters: which groups of a step are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.algorithms.contract import ComparedGroup

__all__ = ["NoFilter", "ZeroVarianceFilter"]


class NoFilter:
    """Trains on every group."""

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[bool]:
        return [True] * len(groups)


class ZeroVarianceFilter:
    """Leaves out the groups in which no call is better than another.

    Their gradient is 0, but their tokens count in the mean that normalisation takes. Without them a step's gradient
    does not shrink as more tasks become all right or all wrong: the effect on the loss of DAPO's dynamic sampling (Yu
    et al. 2025, section 3.2), which also samples other tasks in their place; this filter does not.
    """

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[bool]:
        return [group.tells_apart for group in groups]
