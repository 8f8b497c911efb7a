"""The fleet of a run's replicas: which replica serves a request, and what happens to a request that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Generic, TypeVar

from agentrl import BackendError
from agentrl.inference.contract import Chunk
from agentrl_vllm.client import Client, ServerFailed, ServerHangs
from agentrl_vllm.replica import Replica, engine_answers

__all__ = ["Fleet", "Router"]

Answer = TypeVar("Answer")
Target = TypeVar("Target", bound=Hashable)

_REMEMBERED = 65536
"""How many sessions are remembered with their replica; nothing tells when one ends."""


class Router(Generic[Target]):
    """Chooses a replica: a session stays with its own, where its prefix is cached; a new one goes to the least busy.

    May be used from any thread. It has no lock: each change is one operation on a set or a dict, which no other thread
    sees half done. Two requests that come in the same instant may both go to the replica that was the least busy.
    """

    def __init__(self) -> None:
        self._under_way: dict[Target, set[object]] = {}
        self._sessions: dict[str, Target] = {}
        """The replica of each session, those that have asked last at the end."""
        self._homes: dict[Target, set[str]] = {}

    @contextmanager
    def lease(self, replicas: Sequence[Target], session: str | None) -> Iterator[Target]:
        """Yields one of ``replicas``, at least one, for one request of ``session``."""
        replica, request = self._choose(replicas, session), object()
        under_way = self._under_way.setdefault(replica, set())
        under_way.add(request)
        try:
            yield replica
        finally:
            under_way.discard(request)

    def _choose(self, replicas: Sequence[Target], session: str | None) -> Target:
        home = self._sessions.pop(session, None) if session is not None else None
        if home is not None and home in replicas:
            chosen = home
        else:
            # An episode that calls a tool right now comes back, so that equal loads are told apart by their sessions.
            chosen = min(replicas, key=lambda replica: (self._busy(replica), self._housed(replica)))
        if session is not None:
            if home is not None and home != chosen:
                self._homes.setdefault(home, set()).discard(session)
            self._remember(session, chosen)
        return chosen

    def _busy(self, replica: Target) -> int:
        return len(self._under_way.get(replica, ()))

    def _housed(self, replica: Target) -> int:
        return len(self._homes.get(replica, ()))

    def _remember(self, session: str, replica: Target) -> None:
        self._sessions[session] = replica
        self._homes.setdefault(replica, set()).add(session)
        while len(self._sessions) > _REMEMBERED:
            try:
                oldest = next(iter(self._sessions))
            except (RuntimeError, StopIteration):  # Another thread has just changed it.
                continue
            if (home := self._sessions.pop(oldest, None)) is not None:
                self._homes.setdefault(home, set()).discard(oldest)


_PAUSE_S = 0.1
_ASKED = 2
"""How often the engine of a server that failed at a request is asked for a sign of life."""
_ATTEMPTS = 4
"""How often a request is tried: a request that crashes its server would crash them all."""


class Fleet:
    """The replicas of a run. ``start`` and ``stop`` belong to one event loop; requests may come from any."""

    def __init__(self, replicas: Sequence[Replica], client: Client, *, patience: float) -> None:
        """``patience`` is how many seconds a request waits while no replica is ready."""
        self.replicas = replicas
        self._client = client
        self._patience = patience
        self._router: Router[Replica] = Router()
        self._stopped = False

    async def start(self) -> None:
        """Start all replicas at once. Raises the error of the first that fails."""
        starting = [asyncio.ensure_future(replica.start()) for replica in self.replicas]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def stop(self) -> None:
        """End all replicas and the requests that wait for one. Safe to call twice.

        Raises an error of one of them after all have ended.
        """
        self._stopped = True
        endings = await asyncio.gather(*(replica.stop() for replica in self.replicas), return_exceptions=True)
        for ending in endings:
            if ending is not None:
                raise ending

    @asynccontextmanager
    async def serving(self, session: str | None) -> AsyncIterator[Replica]:
        """Yields a replica for one request, and takes it out where the request fails because the replica is lost.

        Raises ``BackendError`` where no replica is left or comes back, and for a request that is only slow.
        """
        with self._router.lease(await self._ready(), session) as replica:
            life = replica.life
            try:
                yield replica
            except ServerFailed as error:
                if await self._is_lost(replica):
                    replica.fail(error.message, life=life)
                elif isinstance(error, ServerHangs) and not self._stopped:
                    raise _slow(error) from error
                raise

    async def sample(
        self, session: str | None, chunks: Callable[[Replica], AsyncGenerator[Chunk, None]]
    ) -> AsyncGenerator[Chunk, None]:
        """Yields ``chunks(replica)`` of one replica; of another where its server fails before the first chunk.

        Raises as ``serving`` does, and ``ServerFailed`` where a server fails later, or too many fail.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            given = False
            try:
                async with self.serving(session) as replica, aclosing(chunks(replica)) as stream:
                    async for chunk in stream:
                        given = True
                        yield chunk
                return
            except ServerFailed:
                if given or attempt == _ATTEMPTS:
                    raise

    async def ask_all(self, ask: Callable[[Replica], Awaitable[Answer]]) -> dict[Replica, Answer]:
        """Returns what ``ask`` returns of every replica that is ready, at least one.

        One that is lost meanwhile is taken out, and left out. Raises as ``serving`` does, and what ``ask`` raises.
        """
        lost: ServerFailed | None = None
        for _ in range(_ATTEMPTS):
            ready = await self._ready()
            answers = await asyncio.gather(*(self._asked(each, ask) for each in ready), return_exceptions=True)
            found: dict[Replica, Answer] = {}
            for replica, answer in zip(ready, answers, strict=True):
                if isinstance(answer, ServerFailed):
                    lost = answer
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    found[replica] = answer
            if found:
                return found
        raise lost or BackendError("no vLLM server is left")

    async def _asked(self, replica: Replica, ask: Callable[[Replica], Awaitable[Answer]]) -> Answer:
        life = replica.life
        try:
            return await replica.while_ready(ask(replica))
        except ServerFailed as error:
            if await self._is_lost(replica):
                replica.fail(error.message, life=life)
            raise

    async def _is_lost(self, replica: Replica) -> bool:
        """Whether the engine does not answer. A healthy server may fail at one request, or close an idle connection."""
        for _ in range(_ASKED):
            if self._stopped or await engine_answers(self._client, replica.url, lambda: replica.is_busy):
                return False
        return True

    async def _ready(self) -> list[Replica]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while not (ready := [replica for replica in self.replicas if replica.state == "ready"]):
            reasons = "; ".join(sorted({replica.reason for replica in self.replicas if replica.reason}))
            if self._stopped:
                raise BackendError("the vLLM backend was stopped")
            if all(replica.state == "out" for replica in self.replicas):
                raise BackendError(f"no vLLM server is left: {reasons}", fix="the logs of the servers tell more")
            if loop.time() > deadline:
                raise BackendError(f"waited {self._patience:g} s for a vLLM server to come back: {reasons}")
            await asyncio.sleep(_PAUSE_S)
        return ready


def _slow(error: ServerHangs) -> BackendError:
    return BackendError(
        f"a request took longer than inference.backend.request_timeout, and its server is well: {error.message}",
        fix="raise inference.backend.request_timeout, or lower rollout.concurrency or rollout.max_tokens",
    )
