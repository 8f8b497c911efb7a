"""Replicas: each is a server that a run samples from, watched, and brought back with the newest weights when lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import httpcore

from agentrl import BackendError
from agentrl_vllm.client import Client, ServerFailed, one_line

__all__ = ["Replica", "ReplicaServer", "ReplicaState", "engine_answers", "find_fault", "until_set"]


class ReplicaServer(Protocol):
    """A vLLM server as a replica uses it, whether agentrl started it or it ran already."""

    @property
    def ours(self) -> bool:
        """Whether agentrl started it; otherwise it was attached."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def ending(self) -> str: ...
    def last_lines(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def place(self, folder: Path) -> str:
        """Returns the path under which the server sees ``folder``, a small one of this machine's."""
        ...


T = TypeVar("T")


async def until_set(event: asyncio.Event, call: Awaitable[T]) -> asyncio.Future[T]:
    """Returns ``call`` as a finished future, cancelled where ``event`` was set before it ended."""
    asking, waiting = asyncio.ensure_future(call), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([asking, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (asking, waiting):
            task.cancel()
        await asyncio.gather(asking, waiting, return_exceptions=True)
    return asking


_LOOK_S = 0.25
_ASK_S = 5.0
"""Seconds between two questions to the engine."""
_PATIENCE_S = 20.0
"""Seconds that the engine has for an answer: a busy one is slow."""
_MISSES = 3


async def engine_answers(client: Client, url: str, is_busy: Callable[[], bool] = lambda: False) -> bool:
    """Returns whether a server's engine answers, as it does between two steps and while it is paused.

    ``/health`` would be answered without the engine. An engine that ``is_busy()`` may be silent; the server of an
    engine that has died refuses to answer, or refuses connections.
    """
    was_busy = is_busy()
    try:
        await client.get(url, "/is_sleeping", seconds=_PATIENCE_S)
    except ServerFailed as error:
        return isinstance(error.__cause__, httpcore.TimeoutException) and (was_busy or is_busy())
    except BackendError:  # It refuses to say, or it is we who cannot ask: nothing is known against it.
        pass
    return True


async def find_fault(server: ReplicaServer, client: Client, is_busy: Callable[[], bool]) -> str:
    """Watch ``server`` until it is lost. Returns how, as the end of a sentence.

    While ``is_busy()`` is true its engine may be silent.
    """
    hanging = asyncio.ensure_future(_hang(server.url, client, is_busy))
    try:
        while not hanging.done():
            if not server.alive:
                return f"it {server.ending}; it printed last: {server.last_lines()}"
            await asyncio.wait([hanging], timeout=_LOOK_S)
        return await hanging
    finally:
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def _hang(url: str, client: Client, is_busy: Callable[[], bool]) -> str:
    misses = 0
    while misses < _MISSES:
        await asyncio.sleep(_ASK_S)
        misses = 0 if await engine_answers(client, url, is_busy) else misses + 1
    return f"its engine did not answer GET /is_sleeping {misses} times"


ReplicaState = Literal["starting", "ready", "out"]
"""``starting`` also while it is brought back; ``out`` is final."""

_ATTEMPTS = 3
_STEADY_S = 60.0
"""A server that is lost sooner than this, in seconds, counts as one that failed to start."""
_BACKOFF_S = 2.0


class Replica:
    """A server, its state, and the task that watches it and brings it back.

    ``start`` and ``stop`` belong to one event loop; all else may be used from anywhere.
    """

    def __init__(
        self,
        index: int,
        make: Callable[[Path], ReplicaServer],
        newest: Callable[[], tuple[Path, int]],
        admit: Callable[[Replica], Awaitable[None]],
        *,
        client: Client,
        start_timeout: float = 570,
        say: Callable[[str], None] = lambda text: None,
        may_start: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``make`` builds a server for a model folder; ``newest`` returns the newest weights' folder and version.

        ``admit`` is awaited when a server has started: it gives the server the newest weights, and sets ``version`` and
        ``phase``. The replica is ready once it returns, which must be within ``start_timeout`` seconds from the
        beginning of the start. ``say`` is called with what a user should know, and ``may_start`` awaited before a
        server that was lost is started again.
        """
        self.index = index
        self.state: ReplicaState = "starting"
        self.reason: str | None = None
        """Why it was last taken out."""
        self.version: int | None = None
        """The policy version of the weights in the server; ``None`` while it is not known."""
        self.life = 0
        """How often it has been started, which tells one server of the replica from the next."""
        self.phase = "being admitted"
        """What its admission waits for, as the end of a sentence."""
        self._make = make
        self._newest = newest
        self._admit = admit
        self._client = client
        self._start_timeout = start_timeout
        self._say = say
        self._may_start = may_start
        self.folder = newest()[0]
        """The model folder that the present server was started on and may still be reading."""
        self._server = make(self.folder)
        self._failures = 0
        self._ready_at = 0.0
        self._lost = asyncio.Event()
        self._occupied = 0
        self._watching: asyncio.Task[None] | None = None

    @property
    def server(self) -> ReplicaServer:
        """The present server."""
        return self._server

    @property
    def url(self) -> str:
        """The base URL of the present server."""
        return self._server.url

    @property
    def is_busy(self) -> bool:
        """Whether it is loading weights now."""
        return self._occupied > 0

    async def start(self) -> None:
        """Start the server, or attach to it, and begin to watch it. Raises the error of the start or of ``admit``."""
        self._loop = asyncio.get_running_loop()
        await self._enter()
        self._watching = self._loop.create_task(self._watch())

    async def stop(self) -> None:
        """Stop watching, and end the server. Safe to call twice."""
        self.state = "out"
        self._lost.set()
        try:
            if self._watching is not None:
                self._watching.cancel()
                await asyncio.gather(self._watching, return_exceptions=True)
        finally:
            await self._server.stop()

    def fail(self, reason: str, *, life: int | None = None) -> None:
        """Take it out because of ``reason``, and have it brought back with the newest weights. Safe to call again.

        Nothing happens where ``life`` is given and is not the present one: the fault was that of an earlier server.
        """
        if self.state != "ready" or life not in (None, self.life):
            return
        self.state, self.version, self.reason = "starting", None, reason
        with contextlib.suppress(RuntimeError):  # The loop has ended, and the server with it.
            self._loop.call_soon_threadsafe(self._lost.set)

    async def while_ready(self, call: Awaitable[T]) -> T:
        """Returns the result of ``call``. Cancels it and raises ``ServerFailed`` once the replica is not ready."""
        if self.state != "ready":
            self._lost.set()
        ended = await until_set(self._lost, call)
        if ended.cancelled():
            raise ServerFailed(self.reason or f"{self._server.name} was stopped")
        return ended.result()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Within it the server is loading weights, and may be silent without counting as lost."""
        self._occupied += 1
        try:
            yield
        finally:
            self._occupied -= 1

    async def _enter(self) -> None:
        self.life += 1
        self.version = None
        deadline = self._loop.time() + self._start_timeout
        try:
            await self._server.start()
            await self._be_admitted(deadline)
        except BaseException:
            await self._server.stop()
            raise
        self._ready_at = time.monotonic()
        self._lost.clear()
        self.state = "ready"

    async def _be_admitted(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._admit(self)
        except TimeoutError as error:
            last = self._server.last_lines()
            raise BackendError(
                f"{self._server.name} was not ready after {self._start_timeout:g} s, still {self.phase}"
                + (f"; it printed last: {last}" if last else ""),
                fix="raise inference.backend.start_timeout",
            ) from error

    async def _watch(self) -> None:
        try:
            while self.state != "out":
                await self._until_lost()
                self._failures = self._failures + 1 if time.monotonic() - self._ready_at < _STEADY_S else 0
                self._say(f"{self._server.name} is taken out: {self.reason}")
                await self._bring_back()
        except Exception as error:  # Nobody awaits this, and a server that is not watched is none to rely on.
            self.state, self.reason = "out", f"it cannot be watched: {one_line(error) or type(error).__name__}"
            self._lost.set()
            self._say(f"{self._server.name} is given up: {self.reason}")

    async def _until_lost(self) -> None:
        with contextlib.suppress(ServerFailed):  # Somebody else has found it failing.
            self.fail(await self.while_ready(find_fault(self._server, self._client, lambda: self.is_busy)))

    async def _bring_back(self) -> None:
        await self._server.stop()
        while self._failures < _ATTEMPTS:
            await asyncio.sleep(_BACKOFF_S * self._failures)
            if self._may_start is not None:
                await self._may_start()
            self.folder = self._newest()[0]
            self._server = self._make(self.folder)
            try:
                await self._enter()
            except Exception as error:  # Whatever it is, it is said, and the other replicas go on.
                self._failures += 1
                self.reason = one_line(error) or type(error).__name__
                self._say(f"{self._server.name} could not be brought back: {self.reason}")
            else:
                return
        self.state = "out"
        self._say(f"{self._server.name} is given up after {_ATTEMPTS} attempts")
