"""Filters: which groups of a step, and which of their episodes, are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import model_validator

from agentrl.algorithms.contract import Algorithm, ComparedGroup, Filter, Objection, TokenAdvantage
from agentrl.config.section import Section
from agentrl.errors import Limit
from agentrl.rollout.contract import Episode

__all__ = ["NoFilter", "OverLongFilter", "RewardBoundsFilter", "ZeroVarianceFilter", "entering"]


class NoFilter:
    """Trains on every group."""

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if len(algorithm.filter) == 1:
            return None
        return Objection("it leaves out nothing, and stands beside other filters", "leave filter.none out")

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[bool]:
        return [True] * len(groups)


class ZeroVarianceFilter:
    """Leaves out the groups in which no call is better than another.

    Their gradient is 0, but their tokens count in the mean that normalisation takes. Without them a step's gradient
    does not shrink as more tasks become all right or all wrong: the effect on the loss of DAPO's dynamic sampling (Yu
    et al. 2025, section 3.2), which also samples other tasks in their place, as ``rollout.dynamic_sampling`` does.
    """

    def objection(self, algorithm: Algorithm) -> Objection | None:
        advantage = algorithm.advantage
        if isinstance(advantage, TokenAdvantage) or getattr(advantage, "needs_step", False):
            return Objection(
                "this algorithm.advantage compares episodes with more than their group, so that a group of equal "
                "rewards teaches something too",
                "leave the filter out, or choose an advantage of the group, such as group, leave_one_out or "
                "{name: batch, baseline: group}",
            )
        return None

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[bool]:
        return [group.tells_apart for group in groups]


class OverLongFilter:
    """Leaves out the episodes that were cut: what they would have come to is not known.

    Those are episodes with a completion that ended at its limit of tokens, and those that ended because the policy ran
    out of context or of tokens. Their rewards count in their groups' comparison: DAPO's over-long filtering masks their
    loss and nothing else (Yu et al. 2025, section 3.4).
    """

    class Settings(Section):
        turns: bool = False
        """Whether episodes are left out as well that ended at a limit of turns."""

    def __init__(self, settings: Settings) -> None:
        self._limits: set[Limit] = {"context", "tokens", "pass"}
        if settings.turns:
            self._limits.add("turns")

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[Sequence[bool]]:
        return [[not self._cut(episode) for episode in group.episodes] for group in groups]

    def _cut(self, episode: Episode) -> bool:
        return episode.limit in self._limits or any(call.finish_reason == "length" for call in episode.calls)


class RewardBoundsFilter:
    """Leaves out the groups whose mean reward is outside bounds: tasks that are too hard or too easy as yet.

    The mean is over the group's rewarded episodes, of the rewards that they were given, before any shaping. A group
    whose mean is a bound enters.
    """

    class Settings(Section):
        low: float | None = None
        """The least mean reward of a group that is trained on; null for none."""
        high: float | None = None
        """The greatest mean reward of a group that is trained on; null for none."""

        @model_validator(mode="after")
        def _bounds(self) -> RewardBoundsFilter.Settings:
            if self.low is None and self.high is None:
                raise ValueError("without low and high it leaves out nothing: set one of them")
            if self.low is not None and self.high is not None and self.low > self.high:
                raise ValueError(f"low={self.low} is above high={self.high}, so that it leaves out every group")
            return self

    def __init__(self, settings: Settings) -> None:
        self._low = -math.inf if settings.low is None else settings.low
        self._high = math.inf if settings.high is None else settings.high

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[bool]:
        return [self._within(group.episodes) for group in groups]

    def _within(self, episodes: Sequence[Episode]) -> bool:
        mean = math.fsum((episode.reward or 0.0) / len(episodes) for episode in episodes)
        return not episodes or self._low <= mean <= self._high


def entering(filters: Sequence[Filter], groups: Sequence[ComparedGroup]) -> list[tuple[bool, ...] | None]:
    """For each of a step's groups, which of its rewarded episodes every one of ``filters`` lets enter the batch.

    ``None`` for a group of which nothing enters because of a filter. Raises ``ValueError`` for a filter that gives
    another number of answers than it was asked for.
    """
    enters: list[tuple[bool, ...] | None] = [(True,) * len(group.episodes) for group in groups]
    for each in filters:
        answers = each(groups)
        enters = [_both(before, answer) for before, answer in zip(enters, answers, strict=True)]
    return enters


def _both(before: tuple[bool, ...] | None, answer: bool | Sequence[bool]) -> tuple[bool, ...] | None:
    """What enters of a group where a further filter gives ``answer``."""
    of_episodes = getattr(answer, "tolist", lambda: answer)()  # NumPy's arrays and numbers are answers too.
    if before is None or not isinstance(of_episodes, Sequence):
        return before if of_episodes else None
    both = tuple(old and bool(new) for old, new in zip(before, of_episodes, strict=True))
    return both if any(both) or not both else None
