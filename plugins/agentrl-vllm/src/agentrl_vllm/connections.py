"""The connections that one event loop keeps to servers: each serves one request at a time."""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property

import httpcore

from agentrl_vllm.sockets import AsyncioBackend

__all__ = ["Connections"]


class Connections:
    """Idle ones are used again; there is no limit to how many are open. Belongs to the loop that opened it."""

    def __init__(self) -> None:
        self._idle: dict[str, list[httpcore.AsyncHTTPConnection]] = defaultdict(list)
        self._used: set[httpcore.AsyncHTTPConnection] = set()
        self._sockets = AsyncioBackend()
        self._closed = False
        self._life: AsyncGenerator[None, None] = self._lives()

    async def open(self) -> None:
        """Bind it to the running loop, at whose orderly end it is closed."""
        await anext(self._life)

    async def close(self) -> None:
        """Close all connections, also those in use. Safe to call twice."""
        await self._life.aclose()

    @asynccontextmanager
    async def lease(self, origin: httpcore.Origin) -> AsyncIterator[httpcore.AsyncHTTPConnection]:
        """A connection for one request, which is closed unless its response is read to the end."""
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
        """The machine's certificates, or those that ``SSL_CERT_FILE`` names."""
        return ssl.create_default_context()

    async def _lives(self) -> AsyncGenerator[None, None]:
        """Until it is closed: a loop closes the asynchronous generators that are left in it."""
        try:
            yield
        finally:
            self._closed = True
            for connection in [*self._used, *(one for idle in self._idle.values() for one in idle)]:
                await connection.aclose()
            self._idle.clear()
