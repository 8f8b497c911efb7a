"""The HTTP server of the gateway: a thread, and the ASGI application."""

from __future__ import annotations

import asyncio
import http
import ipaddress
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request

from agentrl.errors import GatewayError, RunError
from agentrl.gateway.address import Address
from agentrl.gateway.connection import DEFAULT_LIMITS, Connection, ConnectionLimits, connection_of, header_too_large
from agentrl.gateway.contract import Exchange, Reply
from agentrl.gateway.retries import LastPart
from agentrl.listening import listen
from agentrl.loops import AwakeClock, Ticker
from agentrl.redaction import redact_log

if TYPE_CHECKING:
    import ssl

    import uvicorn
    from starlette.types import Receive, Scope, Send

    from agentrl.gateway.gateway import Gateway

__all__ = ["Application", "Server"]

_PROXIES_HERE = ["127.0.0.1", "::1"]
"""Whose headers about where a request comes from are read: proxies of this machine."""
DEADLINE_S = 30.0
"""Seconds that the server may take to start, or to stop."""

_BACKLOG = 4096
_HEADER_ROOM = 2**20
"""Bytes of a header beyond our own limit before the parser h11 refuses it itself: more than arrives at once."""


class Server:
    """Serves a gateway at an address of this machine.

    It has a thread and an event loop of its own, so that an agent that blocks its loop does not block other calls.
    """

    def __init__(
        self,
        gateway: Gateway,
        limits: ConnectionLimits = DEFAULT_LIMITS,
        clock: AwakeClock | None = None,
        address: Address | None = None,
    ) -> None:
        """``clock`` measures the limits; by default one that stands still while the process is paused.

        ``address`` is by default a free port of the loopback interface.
        """
        self._gateway = gateway
        self.address = address or Address()
        self._limits = limits
        self._clock = clock or AwakeClock()
        self._ticker: Ticker | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.url: str | None = None
        """Where clients reach it; ``None`` while nobody does."""

    def start(self) -> None:
        """Start to serve, and return once clients can connect.

        Raises ``ConfigError`` where the address cannot be taken or its certificate is of no use, and ``RunError`` where
        starting takes too long.
        """
        if self._thread is not None:
            return
        tls = self.address.tls()
        listener = listen(
            self.address.host,
            self.address.port,
            what="the gateway",
            other_port="take another port, or 0 for a free one",
            other_host="take an address of this machine (gateway.host, or serve.host of a service)",
        )
        self._server = server = self._made(tls)
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="agentrl-gateway", daemon=True
        )
        self._thread.start()
        self._ticker = Ticker(self._clock)
        self._wait_until_started(server, self._thread)
        self.url = self.address.url_at(listener)

    def _made(self, tls: ssl.SSLContext | None) -> uvicorn.Server:
        import uvicorn
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        for name in ("uvicorn.access", "uvicorn.asgi", "uvicorn.error"):
            redact_log(name)
        made: list[uvicorn.Server] = []
        members = {
            "limits": self._limits,
            "refusal": staticmethod(self._gateway.refusal),
            "stopping": staticmethod(lambda: made[0].should_exit),
            "now": staticmethod(self._clock.time),
        }
        config = uvicorn.Config(
            Application(self._gateway, self._limits, trusts_loopback=self.address.url is None),
            http=type(f"Guarded{AutoHTTPProtocol.__name__}", (Connection, AutoHTTPProtocol), members),
            log_config=None,
            # uvloop accepts one connection a turn: of many agents that come at once, the last waited half a minute for
            # the calls of those before them. A call costs no more CPU with asyncio's own loop.
            loop="asyncio",
            lifespan="off",
            ws="none",
            server_header=False,
            # Else FORWARDED_ALLOW_IPS of the environment would say who may call himself a client of this machine.
            forwarded_allow_ips=_PROXIES_HERE,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(self._limits.stop_s) + 1,
            timeout_keep_alive=self._limits.idle_s,
            h11_max_incomplete_event_size=self._limits.header_bytes + _HEADER_ROOM,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        made.append(uvicorn.Server(config))
        return made[0]

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
        """End the server and its thread. Safe to call twice. Raises ``RunError`` where they do not end in time."""
        server, thread = self._server, self._thread
        self._server = self._thread = self.url = None
        if server is None or thread is None:
            return
        if self._ticker is not None:
            self._ticker.stop()
        server.should_exit = True
        thread.join(DEADLINE_S)
        if thread.is_alive():
            server.force_exit = True
            raise RunError(f"the gateway's HTTP server did not end within {DEADLINE_S:g} s")


class Application:
    """The gateway as an ASGI application, for every path and method. A client that leaves cancels its request."""

    def __init__(
        self, gateway: Gateway, limits: ConnectionLimits = DEFAULT_LIMITS, *, trusts_loopback: bool = True
    ) -> None:
        """``trusts_loopback`` says whether whoever connects over the loopback interface is a client of this machine.

        Behind a proxy that is the proxy.
        """
        self._gateway = gateway
        self._limits = limits
        self._trusts_loopback = trusts_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        request = Request(scope, receive)
        try:
            body = await self._body(request)
        except ClientDisconnect:
            return
        except GatewayError as error:
            reply: Reply | None = self._gateway.refusal(error, scope["path"])
        else:
            reply = await self._answer(self._exchange(request, body), receive)
        if reply is not None:
            await self._send(reply, scope, send)

    async def _send(self, reply: Reply, scope: Scope, send: Send) -> None:
        connection = connection_of(scope)
        headers = {"content-type": "application/json", **reply.headers}
        if isinstance(reply.body, bytes):
            if connection is not None:
                connection.answering(reply.lost)
            headers["content-length"] = str(len(reply.body))
            body = b"" if scope["method"] == "HEAD" or reply.status == http.HTTPStatus.NO_CONTENT else reply.body
            try:
                await _start(send, reply.status, headers)
                await send({"type": "http.response.body", "body": body})
            except OSError:  # What servers raise, by the ASGI specification, where the client has gone.
                reply.lost()
            return
        sending = _Sending(reply)
        if connection is not None:
            connection.answering(sending.client_left)
        await sending.send(headers, send)

    async def _body(self, request: Request) -> bytes:
        """The whole body. Raises ``GatewayError`` for one that is too large, as soon as that is known, and
        ``ClientDisconnect``."""
        self._check_header(request.headers.raw)
        declared = request.headers.get("content-length", "")
        if declared.isdigit():
            self._gateway.check_size(int(declared))
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            self._gateway.check_size(size)
        return b"".join(parts)

    def _check_header(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if sum(len(name) + len(value) for name, value in headers) > self._limits.header_bytes:
            raise header_too_large(self._limits.header_bytes)

    def _exchange(self, request: Request, body: bytes) -> Exchange:
        return Exchange(
            method=request.method,
            path=request.scope["path"],
            body=body,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.raw},
            loopback=self._trusts_loopback and _is_loopback(request.client.host if request.client else ""),
            query=request.scope["query_string"].decode("latin-1"),
        )

    async def _answer(self, exchange: Exchange, receive: Receive) -> Reply | None:
        """The gateway's reply; ``None`` if the client leaves meanwhile."""
        answer = asyncio.ensure_future(self._gateway.answer(exchange))
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


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


class _Sending:
    """The sending of a body that comes in parts, which ends when the client leaves, also while a part is awaited."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._task = asyncio.current_task()
        self._left = False

    def client_left(self) -> None:
        """Give the sending up. Called in the server's loop."""
        self._left = True
        self._reply.lost()
        if self._task is not None:
            self._task.cancel()

    async def send(self, headers: Mapping[str, str], send: Send) -> None:
        """Send everything, or as much as the client waits for."""
        body = self._reply.body
        assert isinstance(body, AsyncGenerator)
        try:
            await _start(send, self._reply.status, headers)
            async for part in body:
                last = isinstance(part, LastPart)
                await send({"type": "http.response.body", "body": part, "more_body": not last})
                if last:
                    return
            await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            if not self._left or self._task is None or self._task.uncancel():
                raise
        except OSError:  # What servers raise, by the ASGI specification, where the client has gone.
            self._reply.lost()
        except Exception:  # The body broke off; the server closes the connection, by which the client knows.
            self._reply.lost()
        finally:
            self._task = None
            await body.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@lru_cache(64)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
