"""A server in the test's own process that answers what the test says, and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Answer = tuple[int, Any] | list[Any] | None
"""Status and JSON body; or the events of a stream; or nothing, at which the connection is closed."""

Handler = Callable[[str, Any], Awaitable[Answer]]
"""From path and JSON body to the answer."""


LAST = "/last"
"""The path after whose answer the connection is closed."""


class Stub:
    """Where it listens, and what has become of its requests."""

    def __init__(self, handler: Handler) -> None:
        self.url = ""
        self.asked: list[tuple[str, Any]] = []
        self.left = 0
        """Requests whose client was gone before the answer."""
        self.connections = 0
        self.closed = asyncio.Event()
        """Set once a connection was closed here."""
        self._handler = handler

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                path = head.split()[1].decode()
                self.asked.append((path, json.loads(body) if body else None))
                if not await self._answer(reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.closed.set()

    async def until(self, happens: Callable[[], object]) -> None:
        """Wait for something that requests bring about; the test has the deadline."""
        while not happens():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        answering = asyncio.ensure_future(self._handler(*self.asked[-1]))
        leaving = asyncio.ensure_future(reader.read(1))
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.left += 1
            answering.cancel()
            return False
        leaving.cancel()
        await asyncio.wait([leaving])
        answer = answering.result()
        if isinstance(answer, tuple):
            body = json.dumps(answer[1]).encode()
            writer.write(b"HTTP/1.1 %d .\r\ncontent-length: %d\r\n\r\n%b" % (answer[0], len(body), body))
        elif answer is not None:
            data = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in answer)
            writer.write(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
            )
        await writer.drain()
        return answer is not None and self.asked[-1][0] != LAST


@asynccontextmanager
async def stub(handler: Handler) -> AsyncIterator[Stub]:
    """A server that answers with ``handler``."""
    own = Stub(handler)
    server = await asyncio.start_server(own.connected, "127.0.0.1", 0)
    own.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield own
    finally:
        server.close()


def choice(
    ids: list[int], *, finish: str | None = "length", version: str | None = "3", logprob: float = -1.0, **fields: Any
) -> dict[str, Any]:
    """An answer of the token endpoint, or an event of its stream."""
    content = [{"token_id": token, "logprob": logprob, "top_logprobs": []} for token in ids]
    spans = [{"version": version, "start": 0, "end": len(ids)}] if version is not None else None
    return {
        "choices": [
            {
                "token_ids": ids,
                "finish_reason": finish,
                "stop_reason": None,
                "logprobs": {"content": content},
                "weight_versions": spans,
                **fields,
            }
        ]
    }
