"""The gateway over HTTP: an ASGI application on a server thread of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from agentrl.errors import GatewayError, RunError
from agentrl.gateway.credentials import redact_log
from agentrl.gateway.exchange import RETRY_HEADER, Exchange, Reply, Service, retry_number

if TYPE_CHECKING:
    import uvicorn

__all__ = ["Application", "Server"]

_KEEP_ALIVE_S = 600
"""Longer than clients keep an idle connection: one that the server ends while a client writes is a failed
request, whose retry looks like that of any earlier request with the same body."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DEADLINE_S = 30.0
"""How long the server may take to start, or to end what it is doing."""


class Application:
    """The ASGI application. A client that goes away cancels its request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP, not {scope['type']}")
        reply = await self._reply(scope, receive)
        if reply is not None:
            await _send(reply, send)

    async def _reply(self, scope: Scope, receive: Receive) -> Reply | None:
        try:
            body = await self._body(receive)
        except GatewayError as error:
            return self._service.refusal(error)
        if body is None:
            return None
        answer = asyncio.ensure_future(self._service.answer(_exchange(scope, body)))
        gone = asyncio.ensure_future(_disconnected(receive))
        heard = False
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            heard = answer.done() and not gone.done()
            return answer.result() if heard else None
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)
            if not heard and not answer.cancelled():
                answer.result().lost()

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; ``None`` if the client goes away meanwhile."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._service.check_size(size)
            if not message.get("more_body"):
                return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _exchange(scope: Scope, body: bytes) -> Exchange:
    headers = dict(scope["headers"])
    host, *_ = scope.get("client") or ("",)
    return Exchange(
        method=scope["method"],
        path=scope["path"],
        body=body,
        authorization=headers.get(b"authorization", b"").decode("latin-1"),
        retry=retry_number(headers.get(RETRY_HEADER.encode(), b"").decode("latin-1")),
        loopback=_is_loopback(host),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _send(reply: Reply, send: Send) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(reply.body)), **reply.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
    await send({"type": "http.response.body", "body": reply.body})


class Server:
    """Serves on a free port of the loopback interface, from a thread with an event loop of its own: an
    agent that blocks its loop does not block the others' calls."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.url: str | None = None
        """Where it serves; ``None`` while it does not."""

    def start(self) -> None:
        """Serve. Raises ``RunError`` if that does not come about in time."""
        import uvicorn

        if self._thread is not None:
            return
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        config = uvicorn.Config(
            Application(self._service),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=int(DEADLINE_S / 2),
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        redact_log("uvicorn.access")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="agentrl-gateway", daemon=True
        )
        self._thread.start()
        self._wait_until_started(self._server, self._thread)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _wait_until_started(self, server: uvicorn.Server, thread: threading.Thread) -> None:
        pause = threading.Event()
        for _ in range(int(DEADLINE_S / 0.01)):
            if server.started:
                return
            if not thread.is_alive():
                break
            pause.wait(0.01)
        raise RunError(f"the gateway's HTTP server did not start within {DEADLINE_S:g} s")

    def stop(self) -> None:
        """End the server and its thread. Raises ``RunError`` if it does not end in time; safe to call twice."""
        server, thread = self._server, self._thread
        self._server = self._thread = self.url = None
        if server is None or thread is None:
            return
        server.should_exit = True
        thread.join(DEADLINE_S)
        if thread.is_alive():
            server.force_exit = True
            raise RunError(f"the gateway's HTTP server did not end within {DEADLINE_S:g} s")
