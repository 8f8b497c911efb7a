"""The episodes of a worker: those of an async agent as tasks of one event loop, those of any other in threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import math
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from agentrl.agents.binding import BoundAgent
from agentrl.agents.exceptions import authors_traceback, describe
from agentrl.agents.watchdog import LoopWatchdog
from agentrl.clients import Unclosable, UnclosableSync, client_library
from agentrl.errors import AgentError, PolicyError
from agentrl.loops import PATIENCE_S, Borrower
from agentrl.worker.connections import GatewayTransport, origin_of
from agentrl.worker.loop import WorkerLoop, collect_rarely, end_if_forked, end_loop_in_forks
from agentrl.worker.protocol import LONGEST, Message, encode, error_to_json, parts_beside, unfit
from agentrl.worker.variables import endpoint_variables, enter_episode

__all__ = ["Inbox", "run_async_agent", "run_sync_agent", "write_stderr"]

Work = Callable[[], bytes]
"""Runs an episode and returns the encoded answer."""

_FIX = "await instead of blocking: AsyncOpenAI, asyncio.sleep, asyncio.to_thread; or set rollout.episodes_per_worker=1"

_EPISODE: ContextVar[object] = ContextVar("agentrl_episode", default=None)


class Inbox:
    """The rollout's messages on their way from the thread that reads them to the main thread, in their order."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._wake: Callable[[], object] = lambda: None

    def put(self, message: Message) -> None:
        """Add a message; may be called from any thread."""
        self._messages.put(message)
        self._wake()

    def get(self) -> Message:
        """Wait for the next message."""
        return self._messages.get()

    def wake_with(self, wake: Callable[[], object]) -> None:
        """Call ``wake`` now and for every further message, so that somebody takes what is ``waiting``."""
        self._wake = wake
        wake()

    def waiting(self) -> Iterator[Message]:
        """Take the messages that have arrived."""
        while not self._messages.empty():
            yield self._messages.get_nowait()

    @property
    def empty(self) -> bool:
        """Whether no message waits to be taken."""
        return self._messages.empty()


def run_async_agent(agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
    """Run the episodes of an async agent as tasks of one event loop until the rollout sends ``stop``.

    What runs then is cancelled. ``send`` sends an encoded message. Raises ``ValueError`` for an unexpected message.
    """
    worker = os.getpid()
    collect_rarely()
    with asyncio.Runner(loop_factory=WorkerLoop) as runner:
        loop = runner.get_loop()
        serving = loop.create_task(_AsyncEpisodes(agent, inbox, send, loop).serve())
        serving.add_done_callback(lambda _: loop.stop())
        while not serving.done():
            try:
                loop.run_forever()  # Again where the agent has stopped it.
            except (SystemExit, KeyboardInterrupt) as error:
                # A task or callback of the agent's raised it. Its episode sees it where it awaits that.
                end_if_forked(worker, error)
        serving.result()


class _AsyncEpisodes:
    def __init__(
        self, agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._agent = agent
        self._inbox = inbox
        self._send = send
        self._loop = loop
        self._connections = EpisodeConnections(agent)
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
        """Whether a blocked event loop delays another episode or a message."""
        return len(self._tasks) > 1 or not self._inbox.empty

    def _report(self, message: str) -> None:
        task = asyncio.current_task(self._loop)
        episode = None if task is None else self._owners.get(task)
        self._send(encode({"type": "blocked", "id": episode, "message": message}))


def run_sync_agent(agent: BoundAgent, inbox: Inbox, send: Callable[[bytes], None]) -> None:
    """Run the episodes of a synchronous agent until the rollout sends ``stop``, in the main thread where it is free.

    Libraries that set signal handlers, or ask for "the" event loop, work in the main thread alone, as in a script.
    Further episodes run in threads of their own, which do not keep the process from ending. ``cancel`` has no effect:
    nothing can cancel a function. Raises ``ValueError`` for an unexpected message.
    """
    episodes = _SyncEpisodes(agent, send)
    threading.Thread(target=episodes.take, args=(inbox,), name="agentrl-episodes", daemon=True).start()
    episodes.work()


class _SyncEpisodes:
    def __init__(self, agent: BoundAgent, send: Callable[[bytes], None]) -> None:
        self._agent = agent
        self._send = send
        self._connections = EpisodeConnections(agent)
        self._worker = os.getpid()
        self._works: queue.SimpleQueue[Work | ValueError | None] = queue.SimpleQueue()
        self._is_free = True

    def work(self) -> None:
        """Run the episodes that are given to the main thread until ``stop``."""
        while callable(work := self._works.get()):
            answer = work()
            self._is_free = True  # Before the rollout knows it.
            self._send(answer)
        if work is not None:
            raise work

    def take(self, inbox: Inbox) -> None:
        """Obey the rollout's messages until ``stop``."""
        try:
            while (message := inbox.get())["type"] != "stop":
                self._obey(message)
            self._works.put(None)
        except (LookupError, TypeError, ValueError) as error:
            self._works.put(ValueError(f"{type(error).__name__}: {error}"))

    def _obey(self, message: Message) -> None:
        match message["type"]:
            case "run":
                self._start(message["id"], message["data"], message["connection"])
            case "cancel":
                pass
            case other:
                raise ValueError(f"{other!r} to a worker that has its agent")

    def _start(self, episode: object, data: Any, connection: Message) -> None:
        context = contextvars.copy_context()
        context.run(enter_episode, endpoint_variables(connection["base_url"], connection["api_key"]))

        def work() -> bytes:
            return context.run(self._answer, episode, data, connection)

        if self._is_free:
            self._is_free = False
            self._works.put(work)
        else:
            threading.Thread(target=lambda: self._send(work()), name=f"episode-{episode}", daemon=True).start()

    def _answer(self, episode: object, data: Any, connection: Message) -> bytes:
        try:
            returned = self._agent.call(data, self._connections.of(connection))
        except BaseException as error:  # An agent may do nothing that ends more than its episode.
            end_if_forked(self._worker, error)
            return failed(episode, error)
        end_if_forked(self._worker)
        return done(episode, returned)


class EpisodeConnections:
    """Adds to what an episode is passed the HTTP client that all episodes of a worker share, made when first needed.

    It is async for an async agent; any number of its calls may be under way. It behaves like the client that the
    SDK makes for itself: ten minutes for an answer, and proxies from the environment, for what an agent's tools
    send elsewhere (the variables of the process name the gateway's host among those that are reached directly).
    """

    def __init__(self, agent: BoundAgent) -> None:
        self._agent = agent
        self._client: Any = None
        self._lock = threading.Lock()

    def of(self, episode: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments for an episode whose ``base_url``, ``api_key`` and ``model`` are given."""
        if not self._agent.takes("http_client"):
            return dict(episode)
        return {**episode, "http_client": self._shared(episode["base_url"])}

    def _shared(self, base_url: str) -> Any:
        with self._lock:
            self._client = self._client or _shared_client(base_url, is_async=self._agent.is_async)
            return self._client


def _shared_client(base_url: str, *, is_async: bool) -> Any:
    library = client_library()
    bases = (Unclosable, library.AsyncClient) if is_async else (UnclosableSync, library.Client)
    limits = library.Limits(max_connections=None, max_keepalive_connections=None)
    mounts = {origin_of(base_url): GatewayTransport(library)} if is_async else None
    return type("SharedClient", bases, {})(limits=limits, timeout=library.Timeout(600, connect=5), mounts=mounts)


def done(episode: object, returned: Any) -> bytes:
    """The encoded answer for an agent that returned, or for a failure where JSON cannot carry what it returned."""
    try:
        if inspect.iscoroutine(returned):
            returned.close()
            raise AgentError("the agent is a plain function that returned a coroutine", fix="make it `async def`")
        message = {"type": "done", "id": episode, "returned": returned}
        return _line(lambda: {**message, "parts": parts_beside(returned)}, returned, "returned")
    except AgentError as error:
        return failed(episode, error)


def failed(episode: object, error: BaseException) -> bytes:
    """The encoded answer for an agent that raised; unless the error is an outcome, its traceback goes to stderr."""
    if not isinstance(error, PolicyError):
        write_stderr(f"episode {episode} failed:\n{authors_traceback(error)}")
    content = error_to_json(error)
    try:
        message = {"type": "failed", "id": episode, "error": content}
        return _line(lambda: message, content.get("answer"), "answer")
    except AgentError as unsendable:
        return failed(episode, unsendable)


def write_stderr(text: str) -> None:
    """Write to the process's standard error, whatever object an agent has put in the place of ``sys.stderr``."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


def _line(message: Callable[[], dict[str, Any]], value: Any, at: str) -> bytes:
    """The encoded ``message()``. Raises ``AgentError`` where its part ``value`` would not arrive unchanged."""
    try:
        fault = unfit(value, at)
        line = b"" if fault else encode(message())
    except Exception as error:  # The value is the agent's, and may do anything when it is looked at.
        fault = f"{at}, with {describe(error)}"
    if fault:
        raise AgentError(
            f"what the agent returned cannot be sent as JSON: {fault}",
            fix="return a number, or an answer made of dicts, lists, text and numbers",
        )
    if len(line) > LONGEST:
        raise AgentError(f"what the agent returned takes {len(line)} bytes, more than {LONGEST}", fix="return less")
    return line
