"""One of the servers that a run samples from: watched, and brought back with the newest weights when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from agentrl.errors import one_line
from agentrl_vllm.errors import ServerFailed
from agentrl_vllm.server.asking import answers

__all__ = ["Replica", "ReplicaState", "Serving"]

T = TypeVar("T")

ReplicaState = Literal["starting", "ready", "out"]
"""``starting`` too while it is brought back; ``out`` is for good."""

_LOOK_S = 0.25
_HEALTH_S = 5.0
"""Between two questions whether a server is well."""
_PATIENCE_S = 20.0
"""How long an answer to that may take: a busy one is slow to answer."""
_MISSES = 3
_ATTEMPTS = 3
_STEADY_S = 60.0
"""A server that is lost sooner has failed to start."""
_BACKOFF_S = 2.0


class Serving(Protocol):
    """A server."""

    @property
    def ours(self) -> bool:
        """Whether it was started here, rather than found where it runs."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def ending(self) -> str: ...
    def last_lines(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Replica:
    """A server and what is known of it.

    ``start`` and ``stop`` belong to one event loop, in which it is watched; all else may be used from anywhere.
    """

    def __init__(
        self,
        index: int,
        make: Callable[[Path], Serving],
        newest: Callable[[], tuple[Path, int]],
        admit: Callable[[Replica], Awaitable[None]],
        *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``make`` builds a server of the weights in a folder and ``newest`` names those that count.

        ``admit`` is awaited when a server has started: it brings the server to the weights that count by then, and
        sets ``version``. The replica is ready as soon as it returns.
        """
        self.index = index
        self.state: ReplicaState = "starting"
        self.reason: str | None = None
        """Why it was last lost."""
        self.version: int | None = None
        """Of the weights in the server; ``None`` while that is not known."""
        self.life = 0
        """How often it has been started: which server something was said by."""
        self._make = make
        self._newest = newest
        self._admit = admit
        self._say = say
        self.folder = newest()[0]
        """What the server of its present life was made of: it may be reading that."""
        self._server = make(self.folder)
        self._failures = 0
        self._ready_at = 0.0
        self._lost = asyncio.Event()
        self._occupied = 0
        self._watching: asyncio.Task[None] | None = None

    @property
    def server(self) -> Serving:
        """The server of its present life."""
        return self._server

    @property
    def url(self) -> str:
        """Where its server listens, without a path."""
        return self._server.url

    @property
    def model(self) -> str:
        """What its server calls the model."""
        return self._server.model

    async def start(self) -> None:
        """Start the server, or attach to it, and begin to watch it. Raises what starting or ``admit`` raises."""
        self._loop = asyncio.get_running_loop()
        await self._enter()
        self._watching = self._loop.create_task(self._watch())

    async def stop(self) -> None:
        """End the server and whatever is done about it. Safe to call twice."""
        self.state = "out"
        self._lost.set()
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._server.stop()

    def fail(self, reason: str, *, life: int | None = None) -> None:
        """Take it out because of ``reason``, and have it brought back with the newest weights.

        Where ``life`` is given and it is in another one by now, that was somebody else's fault. Safe to call again.
        """
        if self.state != "ready" or life not in (None, self.life):
            return
        self.state, self.version, self.reason = "starting", None, reason
        with contextlib.suppress(RuntimeError):  # The loop has ended, and the server with it.
            self._loop.call_soon_threadsafe(self._lost.set)

    async def while_ready(self, call: Awaitable[T]) -> T:
        """The result of ``call``. Raises ``ServerFailed``, and cancels the call, as soon as this is not ready."""
        asking, losing = asyncio.ensure_future(call), asyncio.ensure_future(self._lost.wait())
        try:
            if self.state == "ready":
                await asyncio.wait([asking, losing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_lost = not asking.done()
            for task in (asking, losing):
                task.cancel()
            await asyncio.gather(asking, losing, return_exceptions=True)
        if is_lost:
            raise ServerFailed(self.reason or f"{self._server.name} was stopped")
        return asking.result()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While its server is given weights: however long that keeps it from answering, it does not hang."""
        self._occupied += 1
        try:
            yield
        finally:
            self._occupied -= 1

    async def _enter(self) -> None:
        self.life += 1
        self.version = None
        try:
            await self._server.start()
            await self._admit(self)
        except BaseException:
            await self._server.stop()
            raise
        self._ready_at = time.monotonic()
        self._lost.clear()
        self.state = "ready"

    async def _watch(self) -> None:
        while self.state != "out":
            await self._trouble()
            self._failures = self._failures + 1 if time.monotonic() - self._ready_at < _STEADY_S else 0
            self._say(f"{self._server.name} is taken out: {self.reason}")
            await self._bring_back()

    async def _trouble(self) -> None:
        """Return when it is lost."""
        misses, asked_at = 0, time.monotonic()
        while not self._lost.is_set():
            if not self._server.alive:
                self.fail(f"it {self._server.ending}; it printed last: {self._server.last_lines()}")
            elif time.monotonic() - asked_at > _HEALTH_S:
                is_well = await answers(self.url, "/health", _PATIENCE_S)
                misses = 0 if is_well or self._occupied else misses + 1
                asked_at = time.monotonic()
                if misses >= _MISSES:
                    self.fail(f"it did not answer GET /health {misses} times")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), _LOOK_S)

    async def _bring_back(self) -> None:
        await self._server.stop()
        while self._failures < _ATTEMPTS:
            await asyncio.sleep(_BACKOFF_S * self._failures)
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
