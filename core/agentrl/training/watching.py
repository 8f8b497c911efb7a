"""Who may hold the rollout's event loop, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType

from agentrl.agents.watchdog import Holder, LoopWatchdog
from agentrl.errors import BackendError
from agentrl.gateway.completer import generate
from agentrl.rewards.scoring import REWARD, call_reward

__all__ = ["BackendBlocked", "StopBlocked", "rollout_watchdog", "stop_watchdog"]

_FIX = "have the backend's generate await instead of blocking, or use another inference.backend"
_FIX_STOP = "have the backend's stop await instead of blocking"


class BackendBlocked(BackendError):
    """Raised inside an inference backend that blocked the event loop for longer than an episode may take."""

    def __init__(self) -> None:
        super().__init__("the inference backend blocked the event loop past the episode's deadline", fix=_FIX)


class StopBlocked(BackendError):
    """Raised inside an inference backend that blocked the event loop for longer than it may take to stop."""

    def __init__(self) -> None:
        super().__init__("the inference backend blocked the event loop instead of stopping", fix=_FIX_STOP)


_OTHERS = {
    call_reward.__code__: REWARD,
    generate.__code__: Holder("the inference backend", BackendBlocked, _FIX),
}


def rollout_watchdog(agent: str | None, warn: Callable[[str], None], *, deadline: float) -> LoopWatchdog:
    """Of the rollout's event loop, on which rewards run wherever the agent does, and what answers agents in process.

    ``agent`` is the name of the one whose code runs there, if any does; ``deadline`` that of an episode.
    """
    return LoopWatchdog(agent, warn, deadline=deadline, others=_OTHERS)


def stop_watchdog(code: CodeType, warn: Callable[[str], None], *, deadline: float) -> LoopWatchdog:
    """Of the event loop while ``code`` stops a backend, for which that has ``deadline`` seconds."""
    stopping = Holder("the inference backend, which is to stop,", StopBlocked, _FIX_STOP)
    return LoopWatchdog(None, warn, deadline=deadline, others={code: stopping})
