"""Credit assignment: from the rewards of an episode to a return for each of its calls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from agentrl.algorithms.contract import Algorithm, ByCall, Objection
from agentrl.config.section import Section
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode

__all__ = ["CallCredit", "EpisodeCredit", "LengthNeutralCredit", "TreeCredit"]


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


class CallCredit:
    """Gives a call its own reward and nothing of what later calls earn.

    For calls that are judged by themselves and do not serve each other. Where an episode has one reward for all, every
    call has it.
    """

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if "value" not in algorithm.columns:
            return None
        return Objection(
            "a critic learns what later calls will earn, and this credit gives a call nothing of that",
            "set algorithm.credit=tree",
        )

    def __call__(self, episode: Episode) -> ByCall:
        if episode.call_rewards:
            return dict(episode.call_rewards)
        return {call.id: episode.reward or 0.0 for call in episode.calls}


class LengthNeutralCredit:
    """Gives every call what the episode's turns earned on average, so that a reward a turn does not pay for more turns.

    ``G = Σ n · v / Σ n`` over the calls that a reward reaches, where ``n`` is the number of tokens that a call sampled
    and ``v`` its own reward, or for a call without one the mean of its continuations' ``v``. A sum of rewards, as
    ``credit.tree`` has it, grows with each further turn that is rewarded: an agent that splits an answer into more
    turns of the same quality would gain. Here each of its tokens keeps the same ``G``, and with it the same share in
    the gradient under every normalisation, however the answer is split and whether every part is rewarded or only the
    last. All calls of an episode have the same return since later turns change the average that earlier ones are
    part of. Where an episode has one reward for all, every call has it.
    """

    def __call__(self, episode: Episode) -> ByCall:
        if not episode.call_rewards:
            return {call.id: episode.reward or 0.0 for call in episode.calls}
        values = _values(episode)
        tokens = {call.id: call.completion_tokens for call in episode.calls if call.id in values}
        total = sum(tokens.values())
        if not total:
            return {}
        mean = math.fsum(count / total * values[call] for call, count in tokens.items())
        return dict.fromkeys(values, mean)


def _values(episode: Episode) -> dict[str, float]:
    """For every call that a reward reaches its own reward, or the mean of its continuations' values."""
    values = dict(episode.call_rewards)
    continuations: dict[str, list[float]] = {}
    for call in reversed(episode.calls):  # a call comes after its parent
        if call.id not in values and call.id in continuations:
            values[call.id] = math.fsum(continuations[call.id]) / len(continuations[call.id])
        if call.parent is not None and call.id in values:
            continuations.setdefault(call.parent, []).append(values[call.id])
    return {call.id: values[call.id] for call in episode.calls if call.id in values}


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
