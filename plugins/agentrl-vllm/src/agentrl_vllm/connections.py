"""The connections that one event loop keeps to servers: each serves one request at a time.

Their sockets are asyncio's own and send a request in one piece. Sent as head and body, as ``httpcore`` writes it, it
wakes the server twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import select
import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

import httpcore

from agentrl import BackendError

__all__ = ["AsyncioBackend", "Connections", "allow_open_files", "limit_reached"]

_MOST = 65536
_REACHED = {
    errno.EMFILE: "raise `ulimit -n`, or lower rollout.concurrency",
    errno.ENFILE: "raise fs.file-max of this machine, or lower rollout.concurrency",
    errno.EADDRNOTAVAIL: "lower rollout.concurrency: all local ports to that server are in use",
}


def allow_open_files() -> None:
    """Raise this process's soft limit of open files, up to the hard limit: each request in flight has a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # Some systems have a lower one that they do not tell.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_reached(error: OSError, what: str) -> BackendError | None:
    """Returns the error for a limit of this machine that ``error`` is about; ``None`` for any other error."""
    if error.errno not in _REACHED:
        return None
    return BackendError(f"this process cannot connect to {what}: {error.strerror}", fix=_REACHED[error.errno])


class Connections:
    """The connections of one event loop, which opened it. Idle ones are used again, and their number has no limit."""

    def __init__(self) -> None:
        self._idle: dict[str, list[httpcore.AsyncHTTPConnection]] = defaultdict(list)
        self._used: set[httpcore.AsyncHTTPConnection] = set()
        self._sockets = AsyncioBackend()
        self._closed = False
        self._life: AsyncGenerator[None, None] = self._lives()

    async def open(self) -> None:
        """Bind it to the running event loop; it is closed when that loop shuts down its generators."""
        await anext(self._life)

    async def close(self) -> None:
        """Close all connections, also those in use. Safe to call twice."""
        await self._life.aclose()

    @asynccontextmanager
    async def lease(self, origin: httpcore.Origin) -> AsyncIterator[httpcore.AsyncHTTPConnection]:
        """Yields a connection for one request; it is closed afterwards unless the response was read to its end."""
        connection = await self._take(origin)
        self._used.add(connection)
        try:
            yield connection
        finally:
            self._used.discard(connection)
            if connection.is_idle() and not self._closed:
                self._idle[str(origin)].append(connection)
            else:
                await connection.aclose()

    async def _take(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        idle = self._idle[str(origin)]
        while idle:
            connection = idle.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        trusted = self._trusted if origin.scheme == b"https" else None
        return httpcore.AsyncHTTPConnection(origin, ssl_context=trusted, network_backend=self._sockets)

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        """The machine's certificates, or those in ``SSL_CERT_FILE``."""
        return ssl.create_default_context()

    async def _lives(self) -> AsyncGenerator[None, None]:
        """Runs until it is closed, also by an event loop that shuts down: those close all generators."""
        try:
            yield
        finally:
            self._closed = True
            for connection in [*self._used, *(one for idle in self._idle.values() for one in idle)]:
                await connection.aclose()
            self._idle.clear()


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Opens connections for ``httpcore`` through asyncio."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                return _Stream(*await asyncio.open_connection(host, port))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} s") from error
        except OSError as error:
            raise limit_reached(error, f"{host}:{port}") or httpcore.ConnectError(str(error)) from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that sends what was written only when an answer is read, in one piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unsent = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._unsent:
            self._writer.write(self._unsent)
            self._unsent = b""
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(f"nothing within {timeout:g} s") from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._unsent += buffer

    async def aclose(self) -> None:
        self._writer.transport.abort()
        await asyncio.sleep(0)  # The loop closes the socket in its next turn.

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no TLS within {timeout:g} s") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # Of a connection that is idle: that the server has closed it.
            return self._reader.at_eof() or self._writer.is_closing() or self._has_news()
        return self._writer.get_extra_info(info)

    def _has_news(self) -> bool:
        """Whether data has arrived that a busy loop has not read yet."""
        polled = select.poll()
        polled.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return bool(polled.poll(0))
