"""Advantage estimators: from the returns of calls to how much better than the group, or the step, each call did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from agentrl.algorithms.contract import Advantage, ByCall
from agentrl.config.models import Section

__all__ = ["BatchAdvantage", "BatchBaseline", "GroupAdvantage"]


class GroupAdvantage:
    """The return of a call, less the group's mean, over the group's standard deviation.

    ``A = (G - mean) / std``: GRPO (Shao et al. 2024, eq. 3 and section 4.1.2) with the population's
    standard deviation; without the division it is Dr. GRPO (Liu et al. 2025, eq. 5).

    An episode counts once in mean and deviation, however many calls it has: its calls share its weight
    equally. With one reward an episode this is the paper's formula. With rewards of single calls, ``G`` is
    the return from that call on, as in the paper's process supervision (section 4.1.3), but normalised
    after the sum over later calls instead of before it, so that an episode does not gain by having more
    turns. The baseline is the same for every turn, which leaves the gradient unbiased.

    A group whose returns are all equal, which includes a group of one episode, has advantage 0 everywhere.
    """

    class Settings(Section):
        scale: Literal["std", "none"] = "std"
        """What the difference to the mean is divided by: `std` is the standard deviation, `none` leaves it."""

    def __init__(self, settings: Settings) -> None:
        self._scale = settings.scale

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        credited = [episode for episode in returns if episode]
        values = [value for episode in credited for value in episode.values()]
        if not values or math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12):
            return [dict.fromkeys(episode, 0.0) for episode in returns]
        # A float need not hold the square of another. Division by a power of two is exact.
        unit = math.ldexp(1.0, math.frexp(max(map(abs, values)))[1] - 1)
        mean = _mean_over_episodes(credited, lambda value: value / unit)
        if self._scale == "none":
            return [{call: value - mean * unit for call, value in episode.items()} for episode in returns]
        deviation = math.sqrt(_mean_over_episodes(credited, lambda value: (value / unit - mean) ** 2))
        return [{call: (value / unit - mean) / deviation for call, value in episode.items()} for episode in returns]


class BatchAdvantage:
    """The return of a call, less the mean of the whole step, over the step's standard deviation.

    REINFORCE++ (Hu et al. 2025, arXiv:2501.03262, global advantage normalization), for episodes that need no others of
    their task. Where the paper takes mean and deviation over tokens, an episode counts once here, as it does in
    ``advantage.group``; of a step with a single group the two are equal.
    """

    class Settings(GroupAdvantage.Settings):
        """As of ``advantage.group``."""

    def __init__(self, settings: Settings) -> None:
        self._compare = GroupAdvantage(settings)

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        return self._compare(returns)

    def of_step(self, groups: Sequence[Sequence[ByCall]]) -> Sequence[Sequence[ByCall]]:
        """Compare every episode with those of all ``groups``."""
        return _across(self._compare, groups)


class BatchBaseline:
    """Compares the episodes of a group by another estimator, and an episode without a group with the whole step.

    An episode that is the only rewarded one of its group is compared, by the same estimator, with all rewarded ones of
    the step, as if they were one group. With GRPO's estimator that is ``advantage.batch``.
    """

    def __init__(self, compare: Advantage) -> None:
        self._compare = compare

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        return self._compare(returns)

    def of_step(self, groups: Sequence[Sequence[ByCall]]) -> Sequence[Sequence[ByCall]]:
        """Compare the episodes of each of ``groups`` with each other, and those that are alone with all."""
        alone = _across(self._compare, groups) if any(len(group) == 1 for group in groups) else groups
        return [
            self._compare(group) if len(group) > 1 else by_step for group, by_step in zip(groups, alone, strict=True)
        ]


def _across(compare: Advantage, groups: Sequence[Sequence[ByCall]]) -> list[list[ByCall]]:
    """What ``compare`` makes of all episodes together, group by group."""
    compared = iter(compare([episode for group in groups for episode in group]))
    return [[next(compared) for _ in group] for group in groups]


def _mean_over_episodes(returns: Sequence[ByCall], of: Callable[[float], float]) -> float:
    means = [math.fsum(map(of, episode.values())) / len(episode) for episode in returns]
    return math.fsum(means) / len(means)
