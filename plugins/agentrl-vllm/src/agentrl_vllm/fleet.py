"""The replicas of a run: which of them serves a request, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Generic, TypeVar

from agentrl import BackendError
from agentrl.inference.contract import Chunk
from agentrl_vllm.client import Client, ServerFailed, ServerHangs
from agentrl_vllm.replica import Replica, engine_answers

__all__ = ["Fleet", "Router"]

Target = TypeVar("Target", bound=Hashable)

_REMEMBERED = 65536
"""Sessions whose replica is kept in mind; they end without a word."""


class Router(Generic[Target]):
    """A session stays with its replica, where its prefix is cached; a new one goes where least is under way.

    May be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: Counter[Target] = Counter()
        self._sessions: OrderedDict[str, Target] = OrderedDict()
        self._homes: Counter[Target] = Counter()

    @contextmanager
    def lease(self, replicas: Sequence[Target], session: str | None) -> Iterator[Target]:
        """One of ``replicas``, which are at least one, for one request."""
        with self._lock:
            replica = self._choose(replicas, session)
            self._under_way[replica] += 1
        try:
            yield replica
        finally:
            with self._lock:
                self._under_way[replica] -= 1

    def _choose(self, replicas: Sequence[Target], session: str | None) -> Target:
        home = self._sessions.pop(session, None) if session is not None else None
        if home is not None:
            self._homes[home] -= 1
        # An episode that calls a tool right now comes back, so that equal loads are told apart by their sessions.
        free = min(replicas, key=lambda replica: (self._under_way[replica], self._homes[replica]))
        chosen = home if home is not None and home in replicas else free
        if session is not None:
            self._remember(session, chosen)
        return chosen

    def _remember(self, session: str, replica: Target) -> None:
        self._sessions[session] = replica
        self._homes[replica] += 1
        if len(self._sessions) > _REMEMBERED:
            _, gone = self._sessions.popitem(last=False)
            self._homes[gone] -= 1


_PAUSE_S = 0.1
_ASKED = 2
"""How often a server that failed at a request is asked whether it is well."""
_ATTEMPTS = 4
"""How often a request is tried: one that ends its server would end them all."""


class Fleet:
    """``start`` and ``stop`` belong to one event loop; requests may come from any."""

    def __init__(self, replicas: Sequence[Replica], client: Client, *, patience: float) -> None:
        """``patience`` is for how many seconds a request waits for a replica while none is ready."""
        self.replicas = replicas
        self._client = client
        self._patience = patience
        self._router: Router[Replica] = Router()
        self._stopped = False

    async def start(self) -> None:
        """Start all replicas at once; raises what the first of them to fail raises."""
        starting = [asyncio.ensure_future(replica.start()) for replica in self.replicas]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def stop(self) -> None:
        """End all replicas; requests that wait for one, or fail with theirs, end with it. Safe to call twice.

        Raises what one of them raises when all have ended.
        """
        self._stopped = True
        endings = await asyncio.gather(*(replica.stop() for replica in self.replicas), return_exceptions=True)
        for ending in endings:
            if ending is not None:
                raise ending

    @asynccontextmanager
    async def serving(self, session: str | None) -> AsyncIterator[Replica]:
        """A replica for one request; one that fails with ``ServerFailed`` because the replica is lost takes that out.

        Raises ``BackendError`` where there is none and none comes back, and for a request that is merely slow.
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
        """``chunks`` of a replica; where its server fails, of another, unless some were given out already."""
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

    async def _is_lost(self, replica: Replica) -> bool:
        """A server that is well may still fail at one request, or close a connection as it is used again."""
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
