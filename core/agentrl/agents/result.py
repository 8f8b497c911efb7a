"""Normalising what an agent's ``run`` returns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from agentrl.agents.number import as_number
from agentrl.errors import AgentError, near_matches, shown

__all__ = ["as_result"]


def as_result(returned: Any, calls: Collection[str]) -> float | dict[str, float] | None:
    """What ``run`` returned, as a reward, rewards by response id, or ``None`` for rejected.

    ``calls`` are the response ids of the episode's completed calls. Raises ``AgentError`` for anything
    that the contract does not allow.
    """
    if returned is None:
        return None
    if isinstance(returned, Mapping):
        rewards = {call: _finite(reward, f"for call {call!r}") for call, reward in _known(returned, calls).items()}
        # So no sum of some of them, as credit adds them up along the tree, is infinite.
        if not math.isfinite(sum(map(abs, rewards.values()))):
            raise AgentError("the agent returned rewards whose sum is infinite", fix="a reward is a finite number")
        return rewards
    return _finite(returned, "")


def _known(rewards: Mapping[Any, Any], calls: Collection[str]) -> Mapping[str, Any]:
    if not rewards:
        raise AgentError("the agent returned no reward: {}", fix="return None to reject the episode")
    for call in rewards:
        if call not in calls:
            raise AgentError(
                f"the agent rewarded {call!r}, which is no response id of a call it completed",
                fix=near_matches(str(call), calls),
                cause="the agent rewarded what is no response id of a call it completed",
            )
    return rewards


def _finite(value: Any, where: str) -> float:
    number = as_number(value)
    if number is None:
        raise AgentError(
            f"the agent returned {shown(value)} {where}".rstrip() + f", a {type(value).__name__}",
            fix="return a number, a dict from response id to number, or None; or set reward: to have an answer scored",
            cause=f"the agent returned a {type(value).__name__}",
        )
    if not math.isfinite(number):
        raise AgentError(
            f"the agent returned {shown(value)} {where}".rstrip(),
            fix="a reward is a number that a float can hold",
            cause="the agent returned a reward that is not finite",
        )
    return number
