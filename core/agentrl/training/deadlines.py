"""Deadlines of the stages of a run: whatever waits for something else names it when it has waited too long."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from agentrl.errors import AgentRLError, BackendError, RunError
from agentrl.loops import Overdue, finish_in_thread, in_time

__all__ = ["finish_within", "within"]

Result = TypeVar("Result")


async def within(
    seconds: float,
    what: str,
    work: Coroutine[Any, Any, Result],
    *,
    key: str = "inference.timeout",
    error: type[AgentRLError] = BackendError,
) -> Result:
    """Await ``work`` and return its result; past ``seconds`` raise ``error``, which names ``what`` was waited for.

    ``key`` is the key of the config that sets the deadline. Work that cannot be cancelled, such as a call in a thread,
    is left behind.
    """
    try:
        return await in_time(work, seconds)
    except Overdue as overdue:
        raise error(f"waited {seconds:g} s for {what}", fix=f"raise {key}") from overdue


async def finish_within(seconds: float, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` in a thread and return its result; past ``training.timeout``, ``seconds``, raise ``RunError``.

    Until then it is waited for in any case: no weights may change while they are saved. ``what`` is as of ``within``.
    """
    work = finish_in_thread(function, *arguments)
    return await within(seconds, what, work, key="training.timeout", error=RunError)
