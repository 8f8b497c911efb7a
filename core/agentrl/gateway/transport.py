"""The gateway in process: an HTTP client for the openai SDK whose requests never touch a socket."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from agentrl.clients import Unclosable, client_library
from agentrl.gateway.contract import Exchange, Reply
from agentrl.gateway.retries import LastPart
from agentrl.loops import Interruptible
from agentrl.redaction import redact_log

if TYPE_CHECKING:
    from agentrl.gateway.gateway import Gateway

__all__ = ["SharedClients", "Transport"]


class SharedClients:
    """The clients that sessions hand out: one for each HTTP library."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transports: list[Transport] = []
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, library: ModuleType | None = None) -> Any:
        """The ``AsyncClient`` of ``library``, ``httpx`` or ``httpx2``; by default of the one that openai accepts.

        Its requests to the gateway's URL, and those to any URL with a session's key, are answered in process, without
        a limit on how many at once. All others are sent as by any client.
        """
        library = library or client_library()
        with self._lock:
            if library.__name__ not in self._clients:
                self._clients[library.__name__] = self._open(library)
            return self._clients[library.__name__]

    def _open(self, library: ModuleType) -> Any:
        redact_log(library.__name__)
        self._transports.append(Transport(self._gateway, library))
        kind = type("SharedAsyncClient", (Unclosable, library.AsyncClient), {})
        # The SDK's own default; that of httpx, 5 seconds, would cut long answers off.
        return kind(transport=self._transports[-1], timeout=library.Timeout(600, connect=5))

    def stop(self) -> None:
        """Close the connections to other hosts."""
        for transport in self._transports:
            transport.stop()


class Transport:
    """The transport of such a client, for any event loop."""

    def __init__(self, gateway: Gateway, library: ModuleType) -> None:
        self._gateway = gateway
        self._library = library
        self._stream = type("ReplyStream", (_ReplyStream, library.AsyncByteStream), {})
        self._outside: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    async def handle_async_request(self, request: Any) -> Any:
        """Answer a request of the library with a response of the library.

        Raises the library's ``ReadTimeout`` when the client's time is over, which cancels the call.
        """
        authorization = request.headers.get("authorization", "") or request.headers.get("x-api-key", "")
        url = request.url
        path = _below(self._gateway.url, url)
        if path is None and not self._gateway.captures(authorization):
            return await self._client_outside().send(request, stream=True)
        exchange = Exchange(
            method=request.method,
            path=url.path if path is None else path,
            body=await request.aread(),
            headers=_Headers(request.headers.raw),
            in_process=True,
            query=url.query.decode("latin-1"),
        )
        seconds = request.extensions.get("timeout", {}).get("read")
        late = None if seconds is None else f"no answer within {seconds} s"
        with _Deadline(seconds, lambda: self._library.ReadTimeout(late, request=request)):
            reply = await self._gateway.answer(exchange)
        headers = {"content-type": "application/json", **reply.headers}
        if request.method == "HEAD" or isinstance(reply.body, bytes):
            content = b"" if request.method == "HEAD" else reply.body
            return self._library.Response(reply.status, headers=headers, content=content)
        stream = self._stream(reply, request, seconds)
        return self._library.Response(reply.status, headers=headers, stream=stream)

    def _client_outside(self) -> Any:
        loop = asyncio.get_running_loop()
        if loop not in self._outside:
            limits = self._library.Limits(max_connections=None, max_keepalive_connections=20)
            self._outside[loop] = self._library.AsyncClient(limits=limits)
        return self._outside[loop]

    async def aclose(self) -> None:
        """Do nothing, because the client is shared."""

    def stop(self) -> None:
        """Close the connections to other hosts."""
        for loop, client in self._outside.items():
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(client.aclose(), loop)


def _below(base: str, url: Any) -> str | None:
    """The path of ``url`` below that of ``base``; ``None`` where it does not lead there."""
    origin = f"{url.scheme}://{url.netloc.decode()}"
    if not base.startswith(origin):
        return None
    prefix = base[len(origin) :]
    path: str = url.path
    if not prefix:
        return path
    return path[len(prefix) :] if prefix.startswith("/") and path.startswith(f"{prefix}/") else None


class _Deadline(Interruptible):
    """A block that ends with the error that ``late`` makes after ``seconds``; ``asyncio.timeout`` in less time."""

    def __init__(self, seconds: float | None, late: Callable[[], Exception]) -> None:
        super().__init__()
        self._seconds = seconds
        self._late = late
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> _Deadline:
        super().__enter__()
        if self._seconds is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, lambda: self.interrupt(self._late()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().__exit__(kind, error, trace)


class _Headers(Mapping[str, str]):
    """A request's headers by name in lower case, decoded when they are read."""

    __slots__ = ("_values",)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values = {name.lower(): value for name, value in raw}

    def __getitem__(self, name: str) -> str:
        return self._values[name.encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._values)

    def __len__(self) -> int:
        return len(self._values)


class _ReplyStream:
    """The body of a reply that comes in parts. The reply is lost where the client closes or drops it before its end.

    Goes before the library's own class of async streams.
    """

    def __init__(self, reply: Reply, request: Any, seconds: float | None) -> None:
        """``seconds`` is how long the client waits for each part."""
        assert isinstance(reply.body, AsyncGenerator)
        self._parts = reply.body
        self._lost = reply.lost
        self._request = request
        self._seconds = seconds
        self._open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts. Raises the library's ``ReadTimeout``, and its ``ReadError`` where the reply breaks off."""
        library = importlib.import_module(type(self._request).__module__.partition(".")[0])
        late = f"no more of the answer within {self._seconds} s"
        while True:
            try:
                with _Deadline(self._seconds, lambda: library.ReadTimeout(late, request=self._request)):
                    part = await anext(self._parts, None)
            except library.ReadTimeout:
                raise
            except Exception as error:
                raise library.ReadError(f"the answer broke off: {error}", request=self._request) from error
            if part is None or isinstance(part, LastPart):
                self._open = False
            if part is None:
                return
            yield part

    async def aclose(self) -> None:
        """End the stream, as the client does when it is done with the response."""
        self._tell_lost()
        await self._parts.aclose()

    def _tell_lost(self) -> None:
        if self._open:
            self._open = False
            self._lost()

    def __del__(self) -> None:
        self._tell_lost()
