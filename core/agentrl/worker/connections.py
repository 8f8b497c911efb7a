"""The connections of a worker's agents to the gateway, any number of them at once.

An HTTP library's pool looks through all its connections at each step of each request: with 500 agents in a process that
came to twice the CPU of everything else that a call costs them, and with 1,000 to more. Here a request takes the
connection that was used last, and needs to know of no other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

__all__ = ["GatewayTransport", "origin_of"]

_KEPT_S = 300.0
"""Seconds for which a connection is kept that nobody uses; the gateway keeps it longer."""


def origin_of(url: str) -> str:
    """Scheme, host and port of ``url``, as the pattern of a client's ``mounts``."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


class GatewayTransport:
    """A transport for an ``AsyncClient`` of ``library``, for any event loop.

    Each of its connections is a transport of the library itself that has a single one, with all that the library does
    about a connection: time-outs, errors, TLS by the environment's certificates.
    """

    def __init__(self, library: ModuleType) -> None:
        self._library = library
        self._verify: dict[str, Any] = {}
        """What connections are encrypted with, by the scheme of a URL: it takes a while to make, also for none."""
        self._idle: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[tuple[float, Any]]] = WeakKeyDictionary()
        self._stream = type("LeasedStream", (_LeasedStream, library.AsyncByteStream), {})

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request over a connection of its own; it is free again once the response is closed."""
        idle = self._idle.setdefault(asyncio.get_running_loop(), deque())
        while idle and time.monotonic() - idle[0][0] > _KEPT_S:
            await idle.popleft()[1].aclose()
        connection = idle.pop()[1] if idle else self._made(request)

        def free() -> None:
            idle.append((time.monotonic(), connection))

        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await connection.aclose()
            raise
        stream = self._stream(response.stream, free)
        return self._library.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def _made(self, request: Any) -> Any:
        """A transport with one connection."""
        scheme = request.url.scheme
        if scheme not in self._verify:
            self._verify[scheme] = self._library.create_ssl_context(verify=scheme == "https")
        limits = self._library.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEPT_S)
        return self._library.AsyncHTTPTransport(verify=self._verify[scheme], limits=limits)

    async def aclose(self) -> None:
        """Close the connections of the running loop that nobody uses."""
        idle = self._idle.pop(asyncio.get_running_loop(), deque())
        while idle:
            await idle.pop()[1].aclose()

    async def __aenter__(self) -> GatewayTransport:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


class _LeasedStream:
    """The body of a response, whose connection is free once it is closed."""

    def __init__(self, stream: Any, free: Callable[[], None]) -> None:
        self._stream = stream
        self._free: Callable[[], None] | None = free

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        """Close it. Safe to call twice."""
        free, self._free = self._free, None
        if free is not None:
            await self._stream.aclose()
            free()
