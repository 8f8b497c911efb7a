"""Who may hold the rollout's event loop, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

from agentrl.agents.watchdog import Holder, LoopWatchdog
from agentrl.errors import BackendError
from agentrl.gateway.completing import generate
from agentrl.rewards.scoring import REWARD, call_reward

__all__ = ["BackendBlocked", "rollout_watchdog"]

_FIX = "have the backend's generate await instead of blocking, or use another inference.backend"


class BackendBlocked(BackendError):
    """Raised inside an inference backend that blocked the event loop for longer than an episode may take."""

    def __init__(self) -> None:
        super().__init__("the inference backend blocked the event loop past the episode's deadline", fix=_FIX)


_OTHERS = {
    call_reward.__code__: REWARD,
    generate.__code__: Holder("the inference backend", BackendBlocked, _FIX),
}


def rollout_watchdog(agent: str | None, warn: Callable[[str], None], *, deadline: float) -> LoopWatchdog:
    """Of the rollout's event loop, on which rewards run wherever the agent does, and what answers agents in process.

    ``agent`` is the name of the one whose code runs there, if any does; ``deadline`` that of an episode.
    """
    return LoopWatchdog(agent, warn, deadline=deadline, others=_OTHERS)
