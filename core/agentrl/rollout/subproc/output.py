"""What an agent's process prints: read as it comes, and kept in ``logs/workers/worker-N.log``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from agentrl.errors import one_line
from agentrl.redaction import redact

__all__ = ["Output", "WorkerLog"]

_TAIL = 4096
_LINES = 4
_CHARACTERS = 200
_LINE = 8192
"""Bytes of an unfinished line that are held back until it ends."""

_SECRET = re.compile(rb"capture-|sk-agentrl-")


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


class WorkerLog:
    """A file that takes lines as they are, but for keys of the gateway, which are redacted.

    After ``size`` bytes it is set aside as ``….log.1``, and the one before it dropped. Where it cannot be written,
    that is said once, and what would have gone there is lost.
    """

    def __init__(self, path: Path, size: int, warn: Callable[[str], None]) -> None:
        self._path = path
        self._size = size
        self._warn = warn
        self._rest = b""
        self._file: BinaryIO | None = None

    def open(self, header: str) -> None:
        """Open the file, behind what an earlier process printed, with a line that holds the time and ``header``."""
        self._guarded(self._open)
        self.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {header}\n".encode())

    def write(self, chunk: bytes) -> None:
        """What was printed next."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1
        if len(data) - end > _LINE:
            end = len(data)
        data, self._rest = data[:end], data[end:]
        self._guarded(lambda: self._append(data))

    def close(self) -> None:
        """Write what is left and close the file. Safe to call twice."""
        rest, self._rest = self._rest, b""
        self._guarded(lambda: self._append(rest + b"\n" if rest else b""))
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab", buffering=0)

    def _append(self, data: bytes) -> None:
        if self._file is None or not data:
            return
        if self._file.tell() > 0 and self._file.tell() + len(data) > self._size:
            self._file.close()
            self._file = None
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._open()
        if self._file is not None:
            self._file.write(_redacted(data))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._warn(f"what agents print is no longer kept: {self._path}: {error.strerror or error}")


def _redacted(data: bytes) -> bytes:
    if _SECRET.search(data) is None:
        return data
    return redact(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
