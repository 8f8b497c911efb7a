"""Advantage estimators: from the returns of calls to how much better than the group, or the step, each call did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from agentrl.algorithms.contract import Advantage, Algorithm, ByCall, Objection
from agentrl.config.section import Section

__all__ = ["BatchAdvantage", "BatchBaseline", "GroupAdvantage", "LeaveOneOutAdvantage", "OneAdvantage"]


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

    needs_group = True

    def __init__(self, settings: Settings) -> None:
        self._scale = settings.scale
        self.ignores_scale = settings.scale == "std"

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        credited = [episode for episode in returns if episode]
        if _all_equal(credited):
            return [dict.fromkeys(episode, 0.0) for episode in returns]
        values = [value for episode in credited for value in episode.values()]
        # A float need not hold the square of another. Division by a power of two is exact.
        unit = math.ldexp(1.0, math.frexp(max(map(abs, values)))[1] - 1)
        mean = _mean_over_episodes(credited, lambda value: value / unit)
        if self._scale == "none":
            return [{call: value - mean * unit for call, value in episode.items()} for episode in returns]
        deviation = math.sqrt(_mean_over_episodes(credited, lambda value: (value / unit - mean) ** 2))
        return [{call: (value / unit - mean) / deviation for call, value in episode.items()} for episode in returns]


class LeaveOneOutAdvantage:
    """The return of a call, less the mean return of the group's other episodes.

    RLOO (Ahmadian et al. 2024, arXiv:2402.14740, section 3.3; Kool et al. 2019). What an episode is compared with does
    not depend on it, so the gradient is unbiased whatever the size of the group. Every other episode counts once in the
    mean, however many calls it has. An episode without others has advantage 0, and so has a group whose returns are all
    equal.
    """

    needs_group = True

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        credited = [episode for episode in returns if episode]
        others = len(credited) - 1
        if others < 1 or _all_equal(credited):
            return [dict.fromkeys(episode, 0.0) for episode in returns]
        means = [math.fsum(value / len(episode) for value in episode.values()) for episode in credited]
        left = iter([means[:at] + means[at + 1 :] for at in range(len(means))])
        made: list[ByCall] = []
        for episode in returns:
            baseline = math.fsum(mean / others for mean in next(left)) if episode else 0.0
            made.append({call: value - baseline for call, value in episode.items()})
        return made


class OneAdvantage:
    """The advantage 1 for every call that reward reaches: what is imitated is not compared with anything."""

    LEAVES_WITHOUT_EFFECT: ClassVar = {"credit": ("discount",)}

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if algorithm.command != "train":
            return None
        return Objection(
            "it takes every episode for as good as any other, whatever its reward is",
            "set one that compares, such as algorithm.advantage=group, or imitate chosen episodes by agentrl sft",
        )

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        return [dict.fromkeys(episode, 1.0) for episode in returns]


class BatchAdvantage:
    """The return of a call, less a baseline, over the standard deviation of the whole step.

    REINFORCE++ (Hu et al. 2025, arXiv:2501.03262, global advantage normalization). With the baseline ``step``, the mean
    of the step, episodes need no others of their task; with ``group``, the mean of the group, it is the paper's
    REINFORCE++ with baseline. Where the paper takes mean and deviation over tokens, an episode counts once here, as it
    does in ``advantage.group``; of a step with a single group the two are equal.
    """

    class Settings(GroupAdvantage.Settings):
        baseline: Literal["step", "group"] = "step"
        """The mean that is taken off: that of the `step`, or of the `group`."""

    def __init__(self, settings: Settings) -> None:
        self._compare = GroupAdvantage(settings)
        self._within = GroupAdvantage(GroupAdvantage.Settings(scale="none")) if settings.baseline == "group" else None
        self.ignores_scale = settings.scale == "std"
        self.needs_step = settings.baseline == "step"
        self.needs_group = settings.baseline == "group"

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        return self.of_step([returns])[0]

    def of_step(self, groups: Sequence[Sequence[ByCall]]) -> Sequence[Sequence[ByCall]]:
        """Compare every episode with those of all ``groups``."""
        if self._within is None:
            return _across(self._compare, groups)
        made = _across(self._compare, [self._within(group) for group in groups])
        # The mean of the centred returns is 0 but for rounding, of which a group without difference makes nothing.
        return [
            [dict.fromkeys(episode, 0.0) for episode in group] if _all_equal(group) else by_step
            for group, by_step in zip(groups, made, strict=True)
        ]


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


def _all_equal(returns: Sequence[ByCall]) -> bool:
    """Whether no call is better than another."""
    values = [value for episode in returns for value in episode.values()]
    return not values or math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)


def _mean_over_episodes(returns: Sequence[ByCall], of: Callable[[float], float]) -> float:
    means = [math.fsum(map(of, episode.values())) / len(episode) for episode in returns]
    return math.fsum(means) / len(means)
