"""HTTP to the servers, from any event loop.

A request leases a connection of its own from those that its loop keeps. A pool, such as that of
``httpx.AsyncClient``, is searched through at each step of each request: with 64 at once that came to 8 ms of CPU
a request, and this to less than 1.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

import httpcore

from agentrl.errors import one_line
from agentrl_vllm.connections import Connections
from agentrl_vllm.errors import ServerFailed, ServerHangs, refusal

__all__ = ["Client"]

_CONNECT_S = 10.0
_CLOSE_S = 5.0
"""How long the connections of a loop in another thread may take to close."""


class Client:
    """Asks servers. Raises ``ServerFailed`` where one does not answer, and what ``refusal`` makes of an error.

    ``timeout`` is how many seconds a server may be silent while it is asked.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Connections] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._closed = False

    async def post(self, url: str, path: str, body: object = None, *, seconds: float | None = None) -> Any:
        """The answer to a JSON body, or to none: its JSON, or its text where it is something else."""
        return await self._ask(_request("POST", url, path, body, seconds or self.timeout))

    async def get(self, url: str, path: str, *, seconds: float | None = None) -> Any:
        """As ``post``."""
        return await self._ask(_request("GET", url, path, None, seconds or self.timeout))

    async def events(self, url: str, path: str, body: object) -> AsyncGenerator[Any, None]:
        """The JSON of each event of a stream. Closing it before its end closes the connection."""
        async with self._answer(_request("POST", url, path, body, self.timeout)) as response:
            kept = b""
            async for part in response.aiter_stream():
                *events, kept = (kept + part).split(b"\n\n")
                for event in events:
                    if (data := event.removeprefix(b"data: ")) != b"[DONE]":
                        yield json.loads(data)

    async def close(self) -> None:
        """Close all connections, also those in use: their requests raise ``ServerFailed``. Safe to call twice."""
        with self._lock:
            self._closed = True
            loops = list(self._loops.items())
            self._loops.clear()
        for loop, connections in loops:
            if loop is asyncio.get_running_loop():
                await connections.close()
            elif loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(connections.close(), loop)
                with suppress(TimeoutError):  # What blocks that loop keeps it from reading as well.
                    await asyncio.wait_for(asyncio.wrap_future(closing), _CLOSE_S)

    async def _ask(self, request: httpcore.Request) -> Any:
        async with self._answer(request) as response:
            body = await response.aread()
        try:
            return json.loads(body)
        except ValueError:
            return body.decode(errors="replace")

    @asynccontextmanager
    async def _answer(self, request: httpcore.Request) -> AsyncIterator[httpcore.Response]:
        """The answer to ``request``, if it is a success; read by whoever asked."""
        url, path = _parts(request)
        try:
            connections = await self._connections()
            async with connections.lease(request.url.origin) as connection:
                response = await connection.handle_async_request(request)
                try:
                    if response.status != HTTPStatus.OK:
                        raise refusal(url, path, response.status, await response.aread())
                    yield response
                finally:
                    await response.aclose()
        except httpcore.TimeoutException as error:
            raise ServerHangs(f"the server at {url} did not answer {path} in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            reason = one_line(error) or type(error).__name__
            raise ServerFailed(f"the connection to the server at {url} broke at {path}: {reason}") from error

    async def _connections(self) -> Connections:
        loop = asyncio.get_running_loop()
        if (connections := self._loops.get(loop)) is not None:
            return connections
        with self._lock:
            if self._closed:
                raise ServerFailed("the connections to the vLLM servers are closed")
            self._loops[loop] = connections = Connections()
        await connections.open()
        return connections


def _request(method: str, url: str, path: str, body: object, timeout: float) -> httpcore.Request:
    target = httpcore.URL(url + path)
    content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    headers: dict[bytes | str, bytes | str] = {"host": url.partition("://")[2], "content-length": str(len(content))}
    if content:
        headers["content-type"] = "application/json"
    limits = {"connect": min(_CONNECT_S, timeout), "read": timeout, "write": timeout}
    return httpcore.Request(method, target, headers=headers, content=content, extensions={"timeout": limits})


def _parts(request: httpcore.Request) -> tuple[str, str]:
    """The server's address and the path on it, as messages name them."""
    origin, path = request.url.origin, request.url.target.decode().partition("?")[0]
    return str(origin), path
