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
from agentrl.worker.answers import done, failed
from agentrl.worker.connections import Connections
from agentrl.worker.forks import end_if_forked, end_loop_in_forks
from agentrl.worker.inbox import Inbox
from agentrl.worker.protocol import Message, encode
from agentrl.worker.variables import endpoint_variables, enter_episode

__all__ = ["run_coroutines"]

_FIX = "await instead of blocking: AsyncOpenAI, asyncio.sleep, asyncio.to_thread; or set rollout.episodes_per_worker=1"

_EPISODE: ContextVar[object] = ContextVar("agentrl_episode", default=None)


def run_coroutines(agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
    """Run episodes until the rollout says ``stop``; then cancel those that are left.

    What an agent raises to leave the interpreter ends its task, as anything else that it raises, and the loop goes on.
    """
    worker = os.getpid()
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        loop = runner.get_loop()
        serving = loop.create_task(_Coroutines(agent, inbox, send).serve())
        while not serving.done():
            try:
                loop.run_until_complete(serving)
            except (SystemExit, KeyboardInterrupt) as error:
                end_if_forked(worker, error)


class _Coroutines:
    def __init__(self, agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
        self._agent = agent
        self._inbox = inbox
        self._send = send
        self._connections = Connections(agent)
        self._worker = os.getpid()
        self._tasks: dict[object, asyncio.Task[bytes]] = {}
        self._cancelled: set[object] = set()
        self._owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()
        self._stop = asyncio.Event()

    async def serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(self._owned)  # type: ignore[arg-type]  # A generic protocol
        end_loop_in_forks(self._loop)
        self._inbox.wake_with(lambda: self._loop.call_soon_threadsafe(self._take))
        watchdog = LoopWatchdog(
            self._agent.name, self._report, deadline=math.inf, harms=self._holds_others_up, fix=_FIX
        )
        async with watchdog:
            await self._stop.wait()

    def _take(self) -> None:
        for message in self._inbox.waiting():
            match message["type"]:
                case "run":
                    self._start(message)
                case "cancel":
                    self._cancel(message["id"])
                case "stop":
                    self._stop.set()
                case other:
                    raise ValueError(f"a worker that has loaded its agent takes no {other!r}")

    def _start(self, run: Message) -> None:
        episode = run["id"]
        connection = run["connection"]
        context = contextvars.copy_context()
        context.run(enter_episode, endpoint_variables(connection["base_url"], connection["api_key"]))
        context.run(_EPISODE.set, episode)
        task = context.run(self._loop.create_task, self._answer(episode, run["data"], connection))
        self._tasks[episode] = task
        task.add_done_callback(lambda ended: self._ended(episode, ended))

    async def _answer(self, episode: object, data: Any, connection: Message) -> bytes:
        try:
            returned = await self._agent.run(data, self._connections.of(connection))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # An agent may do nothing that ends more than its episode.
            end_if_forked(self._worker, error)
            return failed(episode, error)
        end_if_forked(self._worker, None)
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

    def _holds_others_up(self) -> bool:
        return len(self._tasks) > 1 or not self._inbox.empty

    def _report(self, message: str) -> None:
        task = asyncio.current_task(self._loop)
        episode = None if task is None else self._owners.get(task)
        self._send(encode({"type": "blocked", "id": episode, "message": message}))
