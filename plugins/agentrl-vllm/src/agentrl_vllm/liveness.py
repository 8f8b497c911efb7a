"""Whether a server is there: its process, and the engine behind what listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpcore

from agentrl.errors import BackendError
from agentrl_vllm.client import Client
from agentrl_vllm.errors import ServerFailed
from agentrl_vllm.serving import Serving

__all__ = ["engine_answers", "find_fault"]

_LOOK_S = 0.25
_ASK_S = 5.0
"""Between two questions to the engine."""
_PATIENCE_S = 20.0
"""How long an answer to that may take: a busy one is slow to answer."""
_MISSES = 3


async def engine_answers(client: Client, url: str, is_busy: Callable[[], bool] = lambda: False) -> bool:
    """Whether a server's engine answers, as it does between two steps and while it is paused.

    ``/health`` would be answered without it. An engine that ``is_busy()`` may be silent; where it has died in the
    middle, its server refuses to answer, or to be asked.
    """
    was_busy = is_busy()
    try:
        await client.get(url, "/is_sleeping", seconds=_PATIENCE_S)
    except ServerFailed as error:
        return isinstance(error.__cause__, httpcore.TimeoutException) and (was_busy or is_busy())
    except BackendError:  # It refuses to say, or it is we who cannot ask: nothing is known against it.
        pass
    return True


async def find_fault(server: Serving, client: Client, is_busy: Callable[[], bool]) -> str:
    """Watch ``server``, and return how it is lost once it is. While ``is_busy()`` its engine may be silent."""
    hanging = asyncio.ensure_future(_hang(server.url, client, is_busy))
    try:
        while not hanging.done():
            if not server.alive:
                return f"it {server.ending}; it printed last: {server.last_lines()}"
            await asyncio.wait([hanging], timeout=_LOOK_S)
        return await hanging
    finally:
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def _hang(url: str, client: Client, is_busy: Callable[[], bool]) -> str:
    misses = 0
    while misses < _MISSES:
        await asyncio.sleep(_ASK_S)
        misses = 0 if await engine_answers(client, url, is_busy) else misses + 1
    return f"its engine did not answer GET /is_sleeping {misses} times"
