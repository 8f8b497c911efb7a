"""The connections of the gateway's HTTP server.

uvicorn parses HTTP. ``Connection`` goes before its protocol class and adds what that lacks: limits on how long a client
may take to send a request, and word of which answers a client did not receive.
"""

from __future__ import annotations

import asyncio
import http
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Reply

if TYPE_CHECKING:
    from starlette.types import Scope
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Protocol
    from uvicorn.server import ServerState
else:
    _Protocol = object

__all__ = ["DEFAULT_LIMITS", "Connection", "ConnectionLimits", "connection_of", "header_too_large"]

_STATE = "agentrl.connection"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client may use of the server's time and memory. A client on the same machine needs a thousandth of it."""

    header_s: float = 30.0
    """Seconds for a request's header to arrive, from when the connection opens or from the header's first byte."""
    body_s: float = 120.0
    """Seconds for the body to arrive, from the end of the header."""
    header_bytes: int = 64 * 2**10
    """Most bytes of a request's header."""
    idle_s: int = 600
    """Seconds that a connection is kept without a request. More than clients keep one, because a request that a client
    writes while the server closes the connection fails."""
    stop_s: float = 2.0
    """Seconds that answers under way have to be written once the server stops; then their connections are cut."""


DEFAULT_LIMITS = ConnectionLimits()


class Connection(_Protocol):
    """A connection, which watches over uvicorn's protocol class, whichever parser that uses.

    A client that sends a request too slowly, or too long a header, is refused and its connection closed, even while
    bytes still arrive. What is not HTTP is refused in the same form as other errors. ``Server`` derives the class that
    is used, with the four attributes below.
    """

    limits: ConnectionLimits
    refusal: Callable[[Exception, str], Reply]
    """Writes an error for a path."""
    stopping: Callable[[], bool]
    """Whether the server stops."""
    now: Callable[[], float]
    """The time by which the limits are measured, in seconds."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, _STATE: self}, _loop)
        self.logger = _log
        self.access_log = False
        self._began: float | None = None
        """When the client began to send the current header or body; ``None`` between requests."""
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._lost: Callable[[], None] | None = None

    def answering(self, lost: Callable[[], None]) -> None:
        """An answer is about to be sent. ``lost`` is called if the client leaves before it has all of it."""
        self._lost = lost
        if self.transport.is_closing():
            self._tell_lost()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch a new connection, or cut one that opens while the server stops."""
        super().connection_made(transport)
        if self.stopping():
            self.loop.call_soon(transport.abort)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and follow where in a request they end."""
        before = self.cycle
        in_body = self._in_body
        super().data_received(data)
        if self.cycle is not before:  # A header is complete; so the client has had the answer before.
            self._lost, self._began, self._header_bytes = None, None, 0
            if self._in_body:
                self._begin()
        elif not in_body:
            self._header_bytes += len(data)
            if self._began is None:
                self._begin()
            if self._header_bytes > self.limits.header_bytes:
                self._refuse(header_too_large(self.limits.header_bytes))
        elif not self._in_body:
            self._began = None

    @property
    def _in_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def _begin(self) -> None:
        """Start the time that the client has for a header, or for a body."""
        self._began = self.now()
        if self._timer is None:
            self._watch(self._limit_s)

    @property
    def _limit_s(self) -> float:
        return self.limits.body_s if self._in_body else self.limits.header_s

    def _watch(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Refuse a client that has taken too long. A timer outlives its request, so that most requests set none."""
        self._timer = None
        if self._began is None or self.transport.is_closing():
            return
        if self.flow.read_paused:  # The client waits for us.
            self._began = self.now()
        left = self._began + self._limit_s - self.now()
        if left > 0:
            self._watch(left)
        elif self._in_body or self._header_bytes:
            self._refuse(_too_slow("body" if self._in_body else "header", self._limit_s))
        else:
            self.transport.close()  # Nothing was asked.

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; uvicorn calls this."""
        self._refuse(GatewayError("the request is not valid HTTP/1.1", code="invalid_http"))

    def _refuse(self, error: GatewayError) -> None:
        """Answer a request that is only half there, and close; where another answer is due first, only close."""
        cycle = self.cycle
        path = cycle.scope["path"] if self._in_body else ""
        due = cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)
        answered = cycle is not None and cycle.response_complete and cycle.more_body
        if due or answered or getattr(self, "pipeline", None):
            self.transport.abort()
        else:
            self.transport.write(_raw(self.refusal(error, path)))
            self.transport.close()

    def eof_received(self) -> None:
        """The client has closed its side. If it had not read all that was sent, the socket holds an error by now."""
        unsent = self.cycle is not None and not self.cycle.response_complete
        if self._lost is not None and (unsent or self._socket_error()):
            self._tell_lost()
        super().eof_received()

    def _socket_error(self) -> int:
        sock: socket.socket = self.transport.get_extra_info("socket")
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended: with an error if the client left bytes of its answer unread."""
        if exc is not None or (self.cycle is not None and not self.cycle.response_complete):
            self._tell_lost()
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # After an error uvicorn keeps its timer, and with it this object.
        self.app_state.clear()

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost()

    def shutdown(self) -> None:
        """The server stops: let an answer under way be written, and cut any other connection."""
        answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if answering or self.transport.get_write_buffer_size():
            super().shutdown()
            self.loop.call_later(self.limits.stop_s, self._cut)
        else:
            self._cut()

    def _cut(self) -> None:
        if self.transport.get_write_buffer_size():
            self._tell_lost()
        self.transport.abort()


def header_too_large(limit: int) -> GatewayError:
    """The refusal (431) of a header of more than ``limit`` bytes."""
    return GatewayError(
        f"the request's header is over the limit of {limit} bytes",
        status=431,
        code="header_too_large",
        fix="send fewer or shorter headers",
    )


def _too_slow(part: str, limit_s: float) -> GatewayError:
    return GatewayError(
        f"the request's {part} was not here within {limit_s:g} s",
        status=408,
        code="request_timeout",
        fix="send requests whole; one that its client lost time over may be sent again",
    )


def _raw(reply: Reply) -> bytes:
    """A whole HTTP response, after which the connection closes."""
    assert isinstance(reply.body, bytes)
    headers = {
        "content-type": "application/json",
        **reply.headers,
        "content-length": str(len(reply.body)),
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {reply.status} {http.HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body


def connection_of(scope: Scope) -> Connection | None:
    """The connection that a request came by; ``None`` where another server runs the application."""
    connection: Connection | None = scope.get("state", {}).get(_STATE)
    return connection
