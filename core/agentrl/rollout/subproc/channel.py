"""Our end of the connection to a worker: messages in, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentrl.worker.protocol import LONGEST, Message, decode

__all__ = ["Channel"]


class Channel(asyncio.Protocol):
    """Calls ``receive`` for every message, ``fail`` once, with the reason, for what is none, and ``lost`` at the end.

    ``receive`` may raise ``LookupError``, ``TypeError`` or ``ValueError`` for a message that lacks something.
    """

    def __init__(
        self, receive: Callable[[Message], None], fail: Callable[[str], None], lost: Callable[[], None]
    ) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unread = False
        """Whether the other side ended before it had read everything that was sent."""
        self._receive = receive
        self._fail = fail
        self._lost = lost
        self._parts: list[bytes] = []
        self._size = 0
        self._failed = False
        self._transport: asyncio.Transport | None = None

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, line: bytes) -> None:
        """Send an encoded message; lost where the other side has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(line)

    async def close(self) -> None:
        """End the connection; what has not been sent by now never is."""
        if self._transport is not None:
            self._transport.abort()
            await self.closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Messages can be sent from now on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Any part of any number of messages."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            line, self._parts, self._size = b"".join((*self._parts, end)), [], 0
            self._take(line)
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > LONGEST:
            self._refuse(f"a message of more than {LONGEST} bytes")

    def _take(self, line: bytes) -> None:
        if self._failed:
            return
        try:
            self._receive(decode(line))
        except (LookupError, TypeError, ValueError, RecursionError):
            self._refuse(f"{line[:80]!r}")

    def _refuse(self, what: str) -> None:
        self._parts, self._size = [], 0
        if not self._failed:
            self._failed = True
            self._fail(f"sent {what}, which is no message of the worker protocol")

    def connection_lost(self, error: Exception | None) -> None:
        """The other side has ended, or we have."""
        self.unread = error is not None
        self.closed.set_result(None)
        self._lost()
