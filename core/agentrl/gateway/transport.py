"""The gateway in process: an HTTP client for the openai SDK whose requests never touch a socket."""

from __future__ import annotations

import asyncio
import threading
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from agentrl.clients import Unclosable, client_library
from agentrl.gateway.credentials import redact_log
from agentrl.gateway.exchange import RETRY_HEADER, Exchange, Service, retry_number

__all__ = ["SharedClients", "Transport"]


class SharedClients:
    """The clients that sessions hand out, one for each HTTP library that is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transports: list[Transport] = []
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, library: ModuleType | None = None) -> Any:
        """The ``AsyncClient`` of ``library``, ``httpx`` or ``httpx2``; by default what openai takes.

        Its requests to the gateway's URL, and those anywhere with a session's key, are answered in
        process, as many at once as there are; all others go out as from any client.
        """
        library = library or client_library()
        with self._lock:
            if library.__name__ not in self._clients:
                self._clients[library.__name__] = self._open(library)
            return self._clients[library.__name__]

    def _open(self, library: ModuleType) -> Any:
        redact_log(library.__name__)
        self._transports.append(Transport(self._service, library))
        kind = type("SharedAsyncClient", (Unclosable, library.AsyncClient), {})
        # As the SDK has it by default; httpx's own 5 seconds would cut long answers off.
        return kind(transport=self._transports[-1], timeout=library.Timeout(600, connect=5))

    def stop(self) -> None:
        """Close connections that went elsewhere."""
        for transport in self._transports:
            transport.stop()


class Transport:
    """What the client sends its requests through."""

    def __init__(self, service: Service, library: ModuleType) -> None:
        self._service = service
        self._library = library
        self._outside: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    async def handle_async_request(self, request: Any) -> Any:
        """A response of the library's own kind. Raises its ``ReadTimeout`` once the client's time is up,
        which cancels the call."""
        authorization = request.headers.get("authorization", "")
        url = request.url
        inside = self._service.url == f"{url.scheme}://{url.netloc.decode()}"
        if not inside and not self._service.captures(authorization):
            return await self._client_outside().send(request, stream=True)
        exchange = Exchange(
            method=request.method,
            path=url.path,
            body=await request.aread(),
            authorization=authorization,
            retry=retry_number(request.headers.get(RETRY_HEADER, "")),
            in_process=True,
        )
        seconds = request.extensions.get("timeout", {}).get("read")
        try:
            async with asyncio.timeout(seconds):
                reply = await self._service.answer(exchange)
        except TimeoutError as error:
            raise self._library.ReadTimeout(f"no answer within {seconds} s", request=request) from error
        headers = {"content-type": "application/json", **reply.headers}
        body = b"" if request.method == "HEAD" else reply.body
        return self._library.Response(reply.status, headers=headers, content=body)

    def _client_outside(self) -> Any:
        loop = asyncio.get_running_loop()
        if loop not in self._outside:
            limits = self._library.Limits(max_connections=None, max_keepalive_connections=20)
            self._outside[loop] = self._library.AsyncClient(limits=limits)
        return self._outside[loop]

    async def aclose(self) -> None:
        """Nothing: the client is shared."""

    def stop(self) -> None:
        """Close connections that went elsewhere."""
        for loop, client in self._outside.items():
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(client.aclose(), loop)
