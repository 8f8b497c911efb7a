"""Advantage estimators: from the returns of a group's calls to how much better than the group each call did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from agentrl.algorithms.contract import ByCall
from agentrl.config.models import Section

__all__ = ["GroupAdvantage"]


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


def _mean_over_episodes(returns: Sequence[ByCall], of: Callable[[float], float]) -> float:
    means = [math.fsum(map(of, episode.values())) / len(episode) for episode in returns]
    return math.fsum(means) / len(means)
