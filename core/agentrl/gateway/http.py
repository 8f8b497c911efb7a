"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agentrl.errors import GatewayError
from agentrl.gateway.connections import Limits, connection_of, header_too_large
from agentrl.gateway.exchange import RETRY_HEADER, Exchange, Reply, Service, retry_number

__all__ = ["application"]


def application(service: Service, limits: Limits) -> Starlette:
    """What answers HTTP with ``service``, which sorts requests itself: those in process take the same routes."""
    return Starlette(routes=[Route("/{path:path}", _Endpoint(service, limits))])


class _Endpoint:
    """Every path and method. A client that goes away cancels its request."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await self._body(request)
        except ClientDisconnect:
            return
        except GatewayError as error:
            reply: Reply | None = self._service.refusal(error)
        else:
            reply = await self._answer(_exchange(request, body), receive)
        if reply is None:
            return
        if (connection := connection_of(scope)) is not None:
            connection.answering(reply.lost)
        response = Response(reply.body, reply.status, reply.headers, "application/json")
        try:
            await response(scope, receive, send)
        except OSError:  # What a server raises, by the ASGI specification, where the client has gone.
            reply.lost()

    async def _body(self, request: Request) -> bytes:
        """The whole body. Raises ``GatewayError`` for one that is too large, as soon as that is known, and
        ``ClientDisconnect``."""
        self._check_header(request.headers.raw)
        declared = request.headers.get("content-length", "")
        if declared.isdigit():
            self._service.check_size(int(declared))
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            self._service.check_size(size)
        return b"".join(parts)

    def _check_header(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if sum(len(name) + len(value) for name, value in headers) > self._limits.header_bytes:
            raise header_too_large(self._limits.header_bytes)

    async def _answer(self, exchange: Exchange, receive: Receive) -> Reply | None:
        """The service's reply; ``None`` if the client goes away meanwhile."""
        answer = asyncio.ensure_future(self._service.answer(exchange))
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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _exchange(request: Request, body: bytes) -> Exchange:
    headers = request.headers
    return Exchange(
        method=request.method,
        path=request.scope["path"],
        body=body,
        authorization=headers.get("authorization", ""),
        retry=retry_number(headers.get(RETRY_HEADER, "")),
        loopback=_is_loopback(request.client.host if request.client else ""),
    )


@lru_cache(64)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
