"""Shaping: the rewards that are trained on, made of those that episodes were given.

What is reported as reward stays what the agent or the reward function gave.
"""

from __future__ import annotations

from dataclasses import replace
from math import fsum
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from agentrl.algorithms.contract import Algorithm, Objection
from agentrl.config.section import Section
from agentrl.rollout.contract import Episode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ClipShaping", "OverLongShaping", "ScaleShaping"]


class OverLongShaping:
    """Takes something off the rewards of episodes that sampled many tokens: DAPO's soft over-long punishment.

    Of an episode of ``n`` sampled tokens, all its calls together, nothing up to ``longest - margin``; from there on
    ``penalty · (n - (longest - margin)) / margin``, and ``penalty`` from ``longest`` on (Yu et al. 2025, eq. 13, with
    ``L_max = longest``, ``L_cache = margin`` and a penalty of 1). Where single calls were rewarded, each rewarded call
    bears an equal share of it.
    """

    class Settings(Section):
        longest: int = Field(ge=1)
        """The number of sampled tokens from which on the whole penalty is taken off."""
        margin: int = Field(ge=1)
        """How many tokens before that the penalty begins to grow."""
        penalty: float = Field(1.0, gt=0)
        """The most that is taken off."""

        @model_validator(mode="after")
        def _begins(self) -> OverLongShaping.Settings:
            if self.margin > self.longest:
                raise ValueError(f"margin={self.margin} is above longest={self.longest}")
            return self

    def __init__(self, settings: Settings) -> None:
        self._free = settings.longest - settings.margin
        self._margin = settings.margin
        self._penalty = settings.penalty

    def __call__(self, episode: Episode) -> Episode:
        sampled = sum(call.completion_tokens for call in episode.calls)
        share = min(max(sampled - self._free, 0) / self._margin, 1.0)
        if not share:
            return episode
        rewarded = len(episode.call_rewards) or 1
        return _changed(episode, lambda reward: reward - self._penalty * share / rewarded)


class ScaleShaping:
    """Multiplies every reward by a factor."""

    class Settings(Section):
        factor: float = Field(gt=0, allow_inf_nan=False)
        """What rewards are multiplied by."""

    def __init__(self, settings: Settings) -> None:
        self._factor = settings.factor

    def objection(self, algorithm: Algorithm) -> Objection | None:
        last = next((each for each in reversed(algorithm.shaping) if not isinstance(each, ScaleShaping)), None)
        after = algorithm.shaping[list(algorithm.shaping).index(self) :]
        if last in after or not getattr(algorithm.advantage, "ignores_scale", False):
            return None
        return Objection(
            "this algorithm.advantage divides by the standard deviation of rewards, so that their scale has no effect",
            "leave it out, or set algorithm.advantage.scale=none",
        )

    def __call__(self, episode: Episode) -> Episode:
        return _changed(episode, lambda reward: reward * self._factor)


class ClipShaping:
    """Limits every reward to bounds; where single calls were rewarded, the reward of each call."""

    class Settings(Section):
        low: float | None = None
        """The least reward; null for none."""
        high: float | None = None
        """The greatest reward; null for none."""

        @model_validator(mode="after")
        def _bounds(self) -> ClipShaping.Settings:
            if self.low is None and self.high is None:
                raise ValueError("without low and high it limits nothing: set one of them")
            if self.low is not None and self.high is not None and self.low >= self.high:
                raise ValueError(f"low={self.low} is not below high={self.high}, so that all rewards become equal")
            return self

    def __init__(self, settings: Settings) -> None:
        self._low = float("-inf") if settings.low is None else settings.low
        self._high = float("inf") if settings.high is None else settings.high

    def __call__(self, episode: Episode) -> Episode:
        return _changed(episode, lambda reward: min(max(reward, self._low), self._high))


def _changed(episode: Episode, change: Callable[[float], float]) -> Episode:
    """The episode with ``change`` applied to its reward, or to that of each call where calls were rewarded."""
    if episode.call_rewards:
        by_call = {call: change(reward) for call, reward in episode.call_rewards.items()}
        return replace(episode, reward=fsum(by_call.values()), call_rewards=by_call)
    return replace(episode, reward=change(episode.reward or 0.0))
