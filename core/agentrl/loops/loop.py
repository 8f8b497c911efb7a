"""The event loop that everything of ours runs on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from agentrl.loops.clock import AwakeClock, Ticker
from agentrl.loops.threads import Threads, in_threads

__all__ = ["Loop", "in_thread"]

Result = TypeVar("Result")

_LENT = min(32, (os.cpu_count() or 1) + 4)
"""How many blocking calls of agents run at once; asyncio's own number."""


class Loop(asyncio.SelectorEventLoop):
    """Python's own, with two differences.

    Its time, by which all deadlines are kept, stands still while the process is paused. And the threads that it
    lends, as to ``asyncio.to_thread``, are left behind where calls in them do not end.
    """

    def __init__(self, clock: AwakeClock | None = None) -> None:
        self._clock = clock or AwakeClock()
        self._ticker: Ticker | None = None
        super().__init__()
        self.own = Threads("agentrl")
        """For calls of ours, which those of agents must never keep waiting."""
        self.set_default_executor(Threads("agentrl-lent", _LENT))

    def time(self) -> float:
        """See ``asyncio``: seconds, without those of a pause."""
        return self._clock.time()

    def run_forever(self) -> None:
        """See ``asyncio``."""
        if self._ticker is None:
            self._ticker = Ticker(self._clock)
        super().run_forever()

    def close(self) -> None:
        """See ``asyncio``."""
        super().close()
        self.own.shutdown()
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None


async def in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of ours that blocks, as ``asyncio.to_thread`` does, but not in a thread that agents wait for."""
    loop = asyncio.get_running_loop()
    result: Result = await in_threads(loop.own if isinstance(loop, Loop) else Threads("agentrl"), function, *arguments)
    return result
