"""HTTP to the servers, from any event loop, and the errors that their answers stand for.

A request leases a connection of its own from those that its loop keeps. A pool, such as that of
``httpx.AsyncClient``, is searched through at each step of each request: with 64 at once that came to 8 ms of CPU
a request, and this to less than 1.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpcore
import orjson

from agentrl import BackendError, PromptTooLong, UnsupportedSampling
from agentrl_vllm.connections import Connections

__all__ = ["Client", "Reply", "ServerFailed", "ServerHangs", "one_line", "refusal"]

_TOO_LONG = "maximum model length"
_SAMPLING = frozenset(
    {
        *("temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids", "logprobs", "max_tokens"),
        *("structured_outputs", "logit_bias"),
    }
)
_FORM = re.compile(r"structured.?output|grammar|json.?schema|regex|structural.?tag", re.IGNORECASE)
"""What a server calls the form of a completion, where it does not name the field."""


class ServerFailed(BackendError):
    """A server is gone, or failed at a request that another server may be able to do."""


class ServerHangs(ServerFailed):
    """A server accepted a request and did not answer in time."""


def one_line(text: object) -> str:
    """Returns ``text``, or an exception's message, with every run of white space as one space."""
    return " ".join(str(text).encode("utf-8", "backslashreplace").decode().split())


def refusal(url: str, path: str, status: int, body: bytes) -> BackendError:
    """Returns the error for a server's answer with ``status`` and ``body`` to a request for ``path``."""
    message, parameter = _error_of(body)
    if _TOO_LONG in message:
        return PromptTooLong(message, fix="shorten the prompt, or use a model with a longer context")
    if status == HTTPStatus.BAD_REQUEST and (parameter in _SAMPLING or _FORM.search(message)):
        return UnsupportedSampling(f"the server at {url} does not sample so: {message}")
    told = f"the server at {url} answered {path} with {status}: {message or 'nothing more'}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServerFailed(told)
    return BackendError(told, fix=_fix(status))


def _fix(status: int) -> str | None:
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return "start it with --enable-scale-out and VLLM_SERVER_DEV_MODE=1"
    return None


def _error_of(body: bytes) -> tuple[str, str | None]:
    """The message of an error's body, and the field of the request that it is about, if any."""
    try:
        answer = json.loads(body)
        error = answer.get("error", answer.get("detail", "")) if isinstance(answer, dict) else answer
    except ValueError:
        return one_line(body.decode(errors="replace"))[:500], None
    if isinstance(error, dict):
        return one_line(error.get("message", ""))[:500], error.get("param")
    return one_line(error)[:500], None


_CONNECT_S = 10.0
_CLOSE_S = 5.0
"""Seconds that the connections of a loop in another thread may take to close."""


class Reply(NamedTuple):
    """The status and body of a server's answer, whether it is an error or not."""

    status: int
    content: bytes

    @property
    def value(self) -> Any:
        """The value of its JSON, or its text where it is not JSON."""
        return _read(self.content)


class Client:
    """An HTTP client of servers, for any number of event loops.

    ``timeout`` is how many seconds a server may be silent during a request, and ``key`` the API key, if any. Methods
    raise ``ServerFailed`` where a server does not answer, and what ``refusal`` returns for an error.
    """

    def __init__(self, timeout: float, key: str | None = None) -> None:
        self.timeout = timeout
        self._key = key
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Connections] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def post(self, url: str, path: str, body: object = None, *, seconds: float | None = None) -> Any:
        """Returns the answer to a POST, with a JSON body or none: the value of its JSON, or its text.

        ``seconds`` replaces ``timeout``. Raises as the class says.
        """
        return self._success(url, path, await self._ask("POST", url, path, body, seconds))

    async def get(self, url: str, path: str, *, seconds: float | None = None) -> Any:
        """Returns the answer to a GET, as ``post`` does."""
        return self._success(url, path, await self._ask("GET", url, path, None, seconds))

    async def reply(self, url: str, path: str, body: object = None) -> Reply:
        """Returns the answer, whatever its status: to a POST where there is a body, else to a GET."""
        return await self._ask("GET" if body is None else "POST", url, path, body)

    async def events(self, url: str, path: str, body: object) -> AsyncGenerator[Any, None]:
        """Yields the value of each server-sent event. Closing the generator before its end closes the connection."""
        async with self._answer("POST", url, path, body, self.timeout) as response:
            if response.status != HTTPStatus.OK:
                raise refusal(url, _bare(path), response.status, await response.aread())
            kept = b""
            async for part in response.aiter_stream():
                *events, kept = (kept + part).split(b"\n\n")
                for event in events:
                    if (data := event.removeprefix(b"data: ")) != b"[DONE]":
                        yield _read(data)

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

    def _success(self, url: str, path: str, reply: Reply) -> Any:
        if reply.status != HTTPStatus.OK:
            raise refusal(url, _bare(path), *reply)
        return reply.value

    async def _ask(self, method: str, url: str, path: str, body: object, seconds: float | None = None) -> Reply:
        async with self._answer(method, url, path, body, seconds or self.timeout) as response:
            return Reply(response.status, await response.aread())

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, path: str, body: object, seconds: float
    ) -> AsyncIterator[httpcore.Response]:
        """The response to a request, which the caller reads."""
        request = self._request(method, url, path, body, seconds)
        try:
            connections = await self._connections()
            async with connections.lease(request.url.origin) as connection:
                response = await connection.handle_async_request(request)
                try:
                    yield response
                finally:
                    await response.aclose()
        except (httpcore.ReadTimeout, httpcore.WriteTimeout) as error:
            raise ServerHangs(f"the server at {url} did not answer {_bare(path)} within {seconds:g} s") from error
        # That no connection comes about in time may be for a loop of ours that was busy: it is no sign of a hang.
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            reason = one_line(error) or type(error).__name__
            raise ServerFailed(f"the connection to the server at {url} broke at {_bare(path)}: {reason}") from error

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

    def _request(self, method: str, url: str, path: str, body: object, seconds: float) -> httpcore.Request:
        content = b"" if body is None else orjson.dumps(body)
        headers: dict[bytes | str, bytes | str] = {"host": urlsplit(url).netloc, "content-length": str(len(content))}
        if content:
            headers["content-type"] = "application/json"
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        limits = {"connect": min(_CONNECT_S, seconds), "read": seconds, "write": seconds}
        return httpcore.Request(
            method, httpcore.URL(url + path), headers=headers, content=content, extensions={"timeout": limits}
        )


def _read(content: bytes) -> Any:
    """The value of JSON content; the text of any other content."""
    try:
        return orjson.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def _bare(path: str) -> str:
    """A path without its query, as messages name it."""
    return path.partition("?")[0]
