"""Credit assignment: from the rewards of an episode to a return for each of its calls."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from agentrl.algorithms.contract import ByCall
from agentrl.config.models import Section
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode

__all__ = ["EpisodeCredit", "TreeCredit"]


class EpisodeCredit:
    """Gives every call the whole reward of its episode: outcome supervision (Shao et al. 2024, section 4.1.2)."""

    def __call__(self, episode: Episode) -> ByCall:
        return {call.id: episode.reward or 0.0 for call in episode.calls}


class TreeCredit:
    """Passes reward from a call back to the earlier calls of its conversation, and to no others.

    Earlier calls are found by ``Call.parent``, so sub-agents that talk in separate conversations do not share rewards,
    whatever order their calls came in.

    Where single calls were rewarded, a call earns its own reward and the returns of the calls that
    continue it, each discounted once: ``G(c) = r(c) + γ · Σ G(child)``. Calls that no reward reaches are
    not trained. Where the episode has one reward, it is earned at the end of every conversation: a call
    earns ``γ^k`` of it, with ``k`` the calls that still follow on its longest continuation.
    """

    class Settings(Section):
        discount: float = Field(1.0, ge=0, le=1)
        """Factor on the return of the next call of a conversation; 1 gives every call the same."""

    def __init__(self, settings: Settings) -> None:
        self._discount = settings.discount

    def __call__(self, episode: Episode) -> ByCall:
        if episode.call_rewards:
            return _returns(episode, self._discount)
        reward = episode.reward or 0.0
        return {call: reward * self._discount**calls_left for call, calls_left in _heights(episode.calls).items()}


def _returns(episode: Episode, discount: float) -> dict[str, float]:
    returns = dict(episode.call_rewards)
    for call in reversed(episode.calls):  # a call comes after its parent
        if call.parent is not None and call.id in returns:
            returns[call.parent] = returns.get(call.parent, 0.0) + discount * returns[call.id]
    return returns


def _heights(calls: Sequence[Call]) -> dict[str, int]:
    """For each call, how many follow it on its longest continuation."""
    heights = {call.id: 0 for call in calls}
    for call in reversed(calls):
        if call.parent in heights:
            heights[call.parent] = max(heights[call.parent], heights[call.id] + 1)
    return heights
