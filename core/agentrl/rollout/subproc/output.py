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
    """Reads what a process prints: keeps its last 4 KiB, passes all of it to a log, and counts bytes.

    The event loop reads at most 64 KiB of a pipe at a time, so a process that floods delays the others little. After
    ``limit`` bytes since the last ``allow``, ``flooded`` is called once and the rest is read but not kept.
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
        """Start counting bytes from zero."""
        self._printed = 0

    def last_lines(self) -> str:
        """The last four lines that were printed, joined into one; empty where nothing was printed."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        return " | ".join([one_line(line)[:_CHARACTERS] for line in lines if line.strip()][-_LINES:])

    async def close(self) -> None:
        """Stop reading and close the pipe."""
        if self._transport is not None:
            self._transport.close()
            await self.closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        assert isinstance(transport, asyncio.ReadTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``: ``data`` was printed."""
        before, self._printed = self._printed, self._printed + len(data)
        if before > self._limit:
            return
        self._tail = (self._tail + data)[-_TAIL:]
        if self._log is not None:
            self._log.write(data)
        if self._printed > self._limit:
            self._flooded()

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``: the pipe has been closed."""
        self.closed.set_result(None)


class WorkerLog:
    """A log file of what a worker prints, with the gateway's keys redacted.

    After ``size`` bytes the file is renamed to ``….log.1``, which replaces an older one. Where it cannot be written,
    ``warn`` is called once and the rest of the output is lost.
    """

    def __init__(self, path: Path, size: int, warn: Callable[[str], None]) -> None:
        self._path = path
        self._size = size
        self._warn = warn
        self._rest = b""
        self._file: BinaryIO | None = None

    def open(self, header: str) -> None:
        """Open the file for appending, and write a line with the time and ``header``."""
        self._guarded(self._open)
        self.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {header}\n".encode())

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``; an unfinished line is held back until it ends or is 8 KiB long."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1
        if len(data) - end > _LINE:
            end = len(data)
        data, self._rest = data[:end], data[end:]
        self._guarded(lambda: self._append(data))

    def close(self) -> None:
        """Write what was held back and close the file. Safe to call twice."""
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
