"""The episodes of an async agent: tasks of one event loop, any number at once."""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from agentrl.agents.binding import BoundAgent
from agentrl.agents.watchdog import LoopWatchdog
from agentrl.errors import AgentError
from agentrl.loops import PATIENCE_S, Borrower
from agentrl.worker.answers import done, failed
from agentrl.worker.connections import Connections
from agentrl.worker.forks import end_if_forked, end_loop_in_forks
from agentrl.worker.inbox import Inbox
from agentrl.worker.loop import WorkerLoop
from agentrl.worker.protocol import Message, encode
from agentrl.worker.variables import endpoint_variables, enter_episode

__all__ = ["run_coroutines"]

_FIX = "await instead of blocking: AsyncOpenAI, asyncio.sleep, asyncio.to_thread; or set rollout.episodes_per_worker=1"

_EPISODE: ContextVar[object] = ContextVar("agentrl_episode", default=None)


def run_coroutines(agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
    """Run episodes until the rollout says ``stop``, and cancel those that are left.

    Raises ``ValueError`` for a message that makes no sense.
    """
    worker = os.getpid()
    with asyncio.Runner(loop_factory=WorkerLoop) as runner:
        loop = runner.get_loop()
        serving = loop.create_task(_Coroutines(agent, inbox, send, loop).serve())
        serving.add_done_callback(lambda _: loop.stop())
        while not serving.done():
            try:
                loop.run_forever()  # Again where the agent has stopped it.
            except (SystemExit, KeyboardInterrupt) as error:
                # Of a task or callback of the agent's. Its episode sees it where it waits for that; the loop goes on.
                end_if_forked(worker, error)
        serving.result()


class _Coroutines:
    def __init__(
        self, agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._agent = agent
        self._inbox = inbox
        self._send = send
        self._loop = loop
        self._connections = Connections(agent)
        self._worker = os.getpid()
        self._tasks: dict[object, asyncio.Task[bytes]] = {}
        self._borrowers: dict[object, Borrower] = {}
        self._is_held = False
        self._cancelled: set[object] = set()
        self._owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()
        self._stopped: asyncio.Future[None] = loop.create_future()

    async def serve(self) -> None:
        self._loop.set_task_factory(self._owned)  # type: ignore[arg-type]  # A protocol of generic functions.
        end_loop_in_forks(self._loop)
        self._inbox.wake_with(lambda: self._loop.call_soon_threadsafe(self._take))
        async with LoopWatchdog(self._agent.name, self._report, deadline=math.inf, harms=self._harms, fix=_FIX):
            await self._stopped
        for episode in list(self._tasks):
            self._cancel(episode)

    def _take(self) -> None:
        try:
            for message in self._inbox.waiting():
                self._obey(message)
        except (LookupError, TypeError, ValueError) as error:
            self._stopped.set_exception(ValueError(f"{type(error).__name__}: {error}"))

    def _obey(self, message: Message) -> None:
        match message["type"]:
            case "run":
                self._start(message["id"], message["data"], message["connection"])
            case "cancel":
                self._cancel(message["id"])
            case "stop":
                self._stopped.set_result(None)
            case other:
                raise ValueError(f"{other!r} to a worker that has its agent")

    def _start(self, episode: object, data: Any, connection: Message) -> None:
        if episode in self._tasks:
            raise ValueError(f"episode {episode} runs already")
        context = contextvars.copy_context()
        context.run(enter_episode, endpoint_variables(connection["base_url"], connection["api_key"]))
        context.run(_EPISODE.set, episode)
        self._borrowers[episode] = borrower = Borrower()
        context.run(borrower.enter)
        task = context.run(self._loop.create_task, self._answer(episode, data, connection))
        self._tasks[episode] = task
        task.add_done_callback(lambda ended: self._ended(episode, ended))

    async def _answer(self, episode: object, data: Any, connection: Message) -> bytes:
        try:
            returned = await self._agent.call(data, self._connections.of(connection))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # An agent may do nothing that ends more than its episode.
            end_if_forked(self._worker, error)
            return failed(episode, error)
        end_if_forked(self._worker)
        return done(episode, returned)

    def _ended(self, episode: object, task: asyncio.Task[bytes]) -> None:
        del self._tasks[episode]
        if task.cancelled():
            asked = episode in self._cancelled
            what = "the episode was cancelled" if asked else "the agent cancelled its own task"
            self._send(failed(episode, AgentError(what)))
        else:
            self._send(task.result())
        self._cancelled.discard(episode)
        self._leave(episode, self._borrowers.pop(episode))

    def _leave(self, episode: object, borrower: Borrower) -> None:
        borrower.leave()
        if borrower.running and not self._is_held:
            self._loop.call_later(PATIENCE_S, self._tell_held, episode, borrower)

    def _tell_held(self, episode: object, borrower: Borrower) -> None:
        if borrower.running and not self._is_held:
            self._is_held = True
            self._send(encode({"type": "held", "id": episode}))

    def _cancel(self, episode: object) -> None:
        if episode in self._tasks:  # It may have ended meanwhile.
            self._cancelled.add(episode)
            self._tasks[episode].cancel()

    def _owned(
        self, loop: asyncio.AbstractEventLoop, code: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        """A task that is known to belong to the episode whose code makes it."""
        task = asyncio.Task(code, loop=loop, **options)
        self._owners[task] = _EPISODE.get()
        return task

    def _harms(self) -> bool:
        """Whether a loop that does not move holds anybody up."""
        return len(self._tasks) > 1 or not self._inbox.empty

    def _report(self, message: str) -> None:
        task = asyncio.current_task(self._loop)
        episode = None if task is None else self._owners.get(task)
        self._send(encode({"type": "blocked", "id": episode, "message": message}))
