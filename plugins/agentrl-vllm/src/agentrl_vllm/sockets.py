"""Sockets for ``httpcore``: asyncio's own, that send a request in one piece.

Sent as head and body, as ``httpcore`` writes it, it wakes the server twice.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

from agentrl_vllm.limits import limit_reached

__all__ = ["AsyncioBackend"]


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Connects to servers."""

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
    """What is written goes out when an answer is read."""

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
        """Whether something has come that the loop, if it was busy, has not read yet."""
        polled = select.poll()
        polled.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return bool(polled.poll(0))
