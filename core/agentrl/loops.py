"""The event loop that agentrl runs on: its clock, which pauses of the process do not advance, and its threads.

``Loop`` is asyncio's own selector loop with two differences. Deadlines are kept by ``AwakeClock``, so that a process
stopped by Ctrl-Z or frozen with its container misses none of them. Blocking calls run in ``Threads``, which are
abandoned where a call never returns, so that no call keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

__all__ = [
    "PATIENCE_S",
    "TICK_S",
    "AwakeClock",
    "Borrower",
    "Interruptible",
    "Loop",
    "Overdue",
    "Threads",
    "Ticker",
    "finish",
    "finish_in_thread",
    "in_time",
    "run_in_thread",
]

TICK_S = 0.25
"""Seconds between two calls of ``AwakeClock.tick``."""

PATIENCE_S = 2.0
"""Seconds that a blocking call may go on after its borrower has left before a warning names it."""

_LATE_S = 1.0
"""Seconds by which a tick may be late before that counts as a pause: a busy machine delays ticks too."""

_IDLE_S = 10.0
"""Seconds that a thread waits for its next call before it ends."""

_CLEANUP_S = 1.0
"""Seconds that work may take to clean up once its deadline has passed and it is cancelled."""

_LENT = min(32, (os.cpu_count() or 1) + 4)
"""How many blocking calls of agents run at once; the default of asyncio's own executor."""

_BORROWER: ContextVar[Borrower | None] = ContextVar("agentrl_borrower", default=None)

Result = TypeVar("Result")


class AwakeClock:
    """Seconds of the monotonic clock, without the time in which this process was paused.

    No system call reports a pause, so it is inferred: a tick comes much later than it should, and the process used
    little processor time in between. Between two ticks the clock advances by at most one second. A late tick adds the
    rest only where the process was busy meanwhile, as in a C call that holds the interpreter lock.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
        asleep: Callable[[], bool] = lambda: False,
    ) -> None:
        """``monotonic`` returns seconds, ``used`` this process's processor time in seconds, and ``asleep`` whether
        the clock should stand still for another reason, such as a paused process that everything here waits for."""
        self._monotonic = monotonic
        self._used = used
        self._asleep = asleep
        self._paused = 0.0
        self._latest = math.inf
        """The clock does not go beyond this before the next tick; infinite while nobody ticks."""
        self._ticked = 0.0
        self._used_then = 0.0

    def time(self) -> float:
        """The current time in seconds, from any thread."""
        return min(self._monotonic() - self._paused, self._latest)

    def start(self) -> None:
        """Start to detect pauses. From now on one thread must call ``tick`` every ``TICK_S`` seconds."""
        self._ticked, self._used_then = self._monotonic(), self._used()
        self._latest = self._ticked - self._paused + _LATE_S

    def tick(self) -> None:
        """Record that the process is running, and subtract a pause that has just ended."""
        now, used, asleep = self._monotonic(), self._used(), self._asleep()
        gap, worked = now - self._ticked, used - self._used_then
        self._ticked, self._used_then = now, used
        if asleep or (gap > _LATE_S and worked < gap / 2):
            self._paused = now - self.time()
        self._latest = self.time() if asleep else now - self._paused + _LATE_S

    def stop(self) -> None:
        """Stop to detect pauses: the clock runs on without ticks."""
        self._latest = math.inf


class Ticker:
    """A daemon thread that calls a clock's ``tick`` until it is stopped."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._stopped = threading.Event()
        clock.start()
        threading.Thread(target=self._tick, name="agentrl-clock", daemon=True).start()

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._stopped.set()

    def _tick(self) -> None:
        while not self._stopped.wait(TICK_S):
            self._clock.tick()
        self._clock.stop()


class Borrower:
    """Whoever blocking calls are made for, such as an episode; when it leaves, its running calls are abandoned."""

    def __init__(self) -> None:
        self.has_left = False
        self._calls: set[ThreadCall] = set()

    def enter(self) -> None:
        """Own the blocking calls that are made from now on in the current context and its copies."""
        _BORROWER.set(self)

    def leave(self) -> None:
        """Cancel the calls that have not begun, and abandon those that run: their results are never read."""
        self.has_left = True
        for call in tuple(self._calls):
            call.cancel()

    @property
    def running(self) -> int:
        """How many of its calls have not ended."""
        return len(self._calls)

    def add(self, call: ThreadCall) -> None:
        """Own ``call`` until it ends."""
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)


class ThreadCall(Future[Any]):
    """A function called in one of ``Threads``, and the future of its result."""

    def __init__(self, threads: Threads, function: Callable[[], Any]) -> None:
        super().__init__()
        self.given_up = False
        """Whether another call may run in its place."""
        self._threads = threads
        self._function: Callable[[], Any] | None = function
        self.borrower = _BORROWER.get()
        if self.borrower is not None:
            self.borrower.add(self)

    def cancel(self) -> bool:
        """Cancel the call as any future. One that already runs goes on, but no longer counts against the limit."""
        cancelled = super().cancel()
        if not cancelled:
            self._threads.give_up(self)
        return cancelled

    def run(self) -> None:
        """Call the function, unless the call has been cancelled."""
        function, self._function = self._function, None
        if function is None or not self.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:  # Whoever waits for the future is told.
            self.set_exception(error)
        else:
            self.set_result(result)


class Threads(ThreadPoolExecutor):
    """An executor whose threads are abandoned when it shuts down, whatever they are doing.

    At most ``most`` calls run at once; a call that was cancelled while it ran, or whose borrower has left, no longer
    counts. It derives from ``ThreadPoolExecutor`` only because asyncio accepts no other class: that one joins its
    threads when it is shut down, and again when the interpreter exits.
    """

    def __init__(self, name: str, most: float = math.inf) -> None:
        super().__init__(1)
        self._name = name
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[ThreadCall] = deque()
        self._running: set[ThreadCall] = set()
        self._taken = 0
        """Threads that count against ``most``: the idle ones, and those whose call nobody has given up."""
        self._idle = 0
        self._ended = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ThreadCall:
        """Call ``fn`` in a thread; see ``concurrent.futures.Executor.submit``."""
        call = ThreadCall(self, partial(fn, *args, **kwargs))
        with self._changed:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(call)
            self._staff()
        return call

    def give_up(self, call: ThreadCall) -> None:
        """Let another call run in the place of ``call``, if that is running."""
        with self._changed:
            if call in self._running and not call.given_up:
                self._release(call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the idle threads. The others end with the call that they run; they are never waited for."""
        with self._changed:
            self._ended = True
            waiting = list(self._waiting) if cancel_futures else []
            self._changed.notify_all()
        for call in waiting:
            call.cancel()

    def _staff(self) -> None:
        """Wake or start a thread for a waiting call, within the limit."""
        if self._idle >= len(self._waiting):
            self._changed.notify()
        elif self._taken < self._most:
            self._taken += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _release(self, call: ThreadCall) -> None:
        call.given_up = True
        self._taken -= 1
        if self._waiting:
            self._staff()

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call.run()
            with self._changed:
                self._running.discard(call)
                if call.given_up:
                    return

    def _next(self) -> ThreadCall | None:
        with self._changed:
            self._idle += 1
            while not self._waiting:
                waited = not self._ended and self._changed.wait(_IDLE_S)
                if not waited and not self._waiting:
                    self._idle -= 1
                    self._taken -= 1
                    return None
            self._idle -= 1
            call = self._waiting.popleft()
            self._running.add(call)
            if call.borrower is not None and call.borrower.has_left:
                self._release(call)
            return call


class Loop(asyncio.SelectorEventLoop):
    """asyncio's selector loop, with deadlines by ``AwakeClock`` and blocking calls in ``Threads``."""

    def __init__(self, clock: AwakeClock | None = None) -> None:
        self._clock = clock or AwakeClock()
        self._ticker: Ticker | None = None
        super().__init__()
        self.own = Threads("agentrl")
        """Runs the blocking calls of agentrl itself, which must never wait for those of agents."""
        self.set_default_executor(Threads("agentrl-lent", _LENT))

    def time(self) -> float:
        """The loop's time in seconds, which stands still while the process is paused."""
        return self._clock.time()

    def run_forever(self) -> None:
        """Run until the loop is stopped, with a thread that detects pauses."""
        if self._ticker is None:
            self._ticker = Ticker(self._clock)
        super().run_forever()

    def close(self) -> None:
        """Close the loop and end its idle threads."""
        super().close()
        self.own.shutdown()
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None


async def run_in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a blocking ``function`` of agentrl or of a plugin in a thread and return its result.

    Unlike ``asyncio.to_thread`` it takes none of the threads that agents use, so that it never waits for theirs, and
    a call that does not return does not keep the process from ending. Raises whatever ``function`` raises.
    """
    loop = asyncio.get_running_loop()
    threads = loop.own if isinstance(loop, Loop) else Threads("agentrl")
    context = contextvars.copy_context()
    result: Result = await asyncio.wrap_future(threads.submit(context.run, function, *arguments))
    return result


async def finish_in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` in a thread and return what it returns; even when cancelled, wait until it has ended.

    A thread cannot be stopped: an optimiser step that was left behind would change weights while they are saved.
    """
    return await finish(run_in_thread(function, *arguments))


async def finish(work: Coroutine[Any, Any, Result], cancelled: Callable[[], None] = lambda: None) -> Result:
    """Await ``work`` and return its result; even when cancelled, wait until it has ended.

    ``cancelled`` is called at a cancellation, so that the work can be told to end early. Where it raises after a
    cancellation, that error is raised instead of ``CancelledError``.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancelled()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        task.result()
        raise


class Overdue(TimeoutError):
    """Raised by ``in_time``, and by nothing that it awaits."""


async def in_time(work: Coroutine[Any, Any, Result], seconds: float) -> Result:
    """Await ``work`` and return its result; past ``seconds`` cancel it and raise ``Overdue``.

    Unlike with ``asyncio.timeout``, work that goes on although it is cancelled is left behind, such as a call in a
    thread that ``finish_in_thread`` waits for. Where the caller is cancelled, the work is, and is awaited for the rest
    of its time; an error that it raises then takes the place of the cancellation.
    """
    loop = asyncio.get_running_loop()
    task, until = loop.create_task(work), loop.time() + seconds
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=max(until - loop.time(), _CLEANUP_S))
        if done and not task.cancelled():
            task.result()
        _leave(task)
        raise
    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=_CLEANUP_S)
        _leave(task)
        raise Overdue
    return task.result()


def _leave(task: asyncio.Task[Any]) -> None:
    """Nobody asks for the result of ``task`` any more; what it raises is not to be reported as never retrieved."""
    task.add_done_callback(lambda task: task.cancelled() or task.exception())


class Interruptible:
    """A block of a task that ``interrupt`` ends by raising an error in it, from any thread.

    The task itself is not cancelled: the caller of the function with the block sees the error, as with
    ``asyncio.timeout``. It needs no task of its own.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._error: Exception | None = None

    def interrupt(self, error: Exception) -> None:
        """Raise ``error`` in the block, unless the block has ended or was interrupted before."""
        task = self._task
        if task is not None and not task.get_loop().is_closed():
            task.get_loop().call_soon_threadsafe(self._cancel, error)

    def _cancel(self, error: Exception) -> None:
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()

    def __enter__(self) -> Interruptible:
        self._task = asyncio.current_task()
        self._requests = self._task.cancelling() if self._task else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._error is None or task is None:
            return
        # A cancellation from elsewhere that came at the same time stays one.
        if task.uncancel() <= self._requests and isinstance(error, asyncio.CancelledError):
            raise self._error from error
