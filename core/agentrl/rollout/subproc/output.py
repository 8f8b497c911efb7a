"""The output of an agent's process, read as it comes so that nobody who prints has to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentrl.errors import one_line
from agentrl.rollout.subproc.log import WorkerLog

__all__ = ["Output"]

_TAIL = 4096
_LINES = 4
_CHARACTERS = 200


class Output(asyncio.Protocol):
    """Keeps the last of what was printed, hands all of it to a log, and counts.

    The event loop reads one pipe's content a turn, 64 KiB, so a process that floods delays nobody much. After
    ``limit`` bytes since the last ``allow`` it is told once, and the rest is read but not kept.
    """

    def __init__(self, log: WorkerLog | None, limit: int, flooded: Callable[[], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log = log
        self._limit = limit
        self._flooded = flooded
        self._printed = 0
        self._tail = b""
        self._transport: asyncio.ReadTransport | None = None

    def allow(self) -> None:
        """Begin to count anew."""
        self._printed = 0

    def last_lines(self) -> str:
        """The last lines that were printed, on one line; empty where nothing was."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        return " | ".join([one_line(line)[:_CHARACTERS] for line in lines if line.strip()][-_LINES:])

    async def close(self) -> None:
        """Read no more."""
        if self._transport is not None:
            self._transport.close()
            await self.closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Reading begins."""
        assert isinstance(transport, asyncio.ReadTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The next that was printed."""
        before, self._printed = self._printed, self._printed + len(data)
        if before > self._limit:
            return
        self._tail = (self._tail + data)[-_TAIL:]
        if self._log is not None:
            self._log.write(data)
        if self._printed > self._limit:
            self._flooded()

    def connection_lost(self, error: Exception | None) -> None:
        """The pipe has ended."""
        self.closed.set_result(None)
