"""The client of an endpoint, on an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from agentrl.errors import BackendError, one_line
from agentrl.loops import Loop, run_in_thread

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["ClientThread"]

Result = TypeVar("Result")


class ClientThread:
    """Runs coroutines with one client, for callers on any loop and thread.

    Connections belong to the loop that they were made on, and callers have several, which may be gone when
    the connections are to be closed. So there is one loop for all of them, and one pool.
    """

    def __init__(self, make_client: Callable[[], AsyncOpenAI]) -> None:
        """Start the thread; ``make_client`` is called in it."""
        self._make_client = make_client
        self._client: Future[AsyncOpenAI] = Future()
        self._loop = Loop()
        self._end = asyncio.Event()
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="agentrl-endpoint", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[AsyncOpenAI], Coroutine[Any, Any, Result]]) -> Result:
        """What ``work`` comes to. Cancelling the caller cancels it; ``stop`` ends it with ``BackendError``."""
        client = await asyncio.shield(asyncio.wrap_future(self._client))
        with self._lock:
            if self._ended:
                raise _closed()
            running = asyncio.run_coroutine_threadsafe(work(client), self._loop)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._ended and caller is not None and not caller.cancelling():
                raise _closed() from None
            raise

    async def stop(self) -> None:
        """Cancel what is in flight, close all connections and end the thread. Safe to call twice."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._end.set)
        await run_in_thread(self._thread.join)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            client = self._make_client()
        except Exception as error:  # Proxies in the environment, for one, may need what is not installed.
            self._client.set_exception(BackendError(f"no client for the endpoint can be made: {one_line(error)}"))
            await self._end.wait()
            return
        self._client.set_result(client)
        async with client:
            await self._end.wait()
            running = asyncio.all_tasks() - {asyncio.current_task()}
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _closed() -> BackendError:
    return BackendError("the connection to the endpoint has been closed")
