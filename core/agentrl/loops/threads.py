"""Threads for calls that may never end: they keep no other call from its turn, and no process from its end."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any

__all__ = ["PATIENCE_S", "Borrower", "Threads", "in_threads"]

PATIENCE_S = 2.0
"""How much longer than its borrower a call may take before it is worth a word."""

_IDLE_S = 10.0
"""How long a thread without work is kept."""

_BORROWER: ContextVar[Borrower | None] = ContextVar("agentrl_borrower", default=None)


class Borrower:
    """Whose calls threads are lent to, such as an episode. When it ends, it leaves the calls that still run behind."""

    def __init__(self) -> None:
        self.has_left = False
        self._calls: set[Call] = set()

    def enter(self) -> None:
        """What is called in a thread from now on, in this context and those that descend from it, is its."""
        _BORROWER.set(self)

    def leave(self) -> None:
        """Cancel the calls that have not begun, and give up those that have: nobody waits for them any more."""
        self.has_left = True
        for call in tuple(self._calls):
            call.cancel()

    @property
    def running(self) -> int:
        """How many of its calls have not ended."""
        return len(self._calls)

    def add(self, call: Call) -> None:
        """Have a call of its own, until that ends."""
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)


class Call(Future[Any]):
    """A function that is called in a thread, and its result."""

    def __init__(self, threads: Threads, function: Callable[[], Any]) -> None:
        super().__init__()
        self.given_up = False
        """Whether it has lost its place to whoever comes next."""
        self._threads = threads
        self._function: Callable[[], Any] | None = function
        self.borrower = _BORROWER.get()
        if self.borrower is not None:
            self.borrower.add(self)

    def cancel(self) -> bool:
        """As any future's; one that runs goes on, but is given up."""
        cancelled = super().cancel()
        if not cancelled:
            self._threads.give_up(self)
        return cancelled

    def run(self) -> None:
        """Call the function, unless it has been cancelled."""
        function, self._function = self._function, None
        if function is None or not self.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:  # Whoever waits for it is told.
            self.set_exception(error)
        else:
            self.set_result(result)


class Threads(ThreadPoolExecutor):
    """An executor whose threads are left behind when it ends, whatever they are doing.

    At most ``most`` calls run at once; a call that is cancelled while it runs, or whose borrower has left, counts no
    more. It is a ``ThreadPoolExecutor`` by its type alone, because asyncio takes no other: that one waits for its
    threads when it is shut down, and again when the interpreter ends.
    """

    def __init__(self, name: str, most: float = math.inf) -> None:
        super().__init__(1)
        self._name = name
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[Call] = deque()
        self._running: set[Call] = set()
        self._taken = 0
        """Threads that hold a place: those that wait for work, and those at work on what nobody has given up."""
        self._idle = 0
        self._ended = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """See ``Executor.submit``."""
        call = Call(self, partial(fn, *args, **kwargs))
        with self._changed:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(call)
            self._staff()
        return call

    def give_up(self, call: Call) -> None:
        """Let somebody else have the place of ``call``, if it runs."""
        with self._changed:
            if call in self._running and not call.given_up:
                self._release(call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads that have nothing to do. Others end after what they are doing, and nobody waits for them."""
        with self._changed:
            self._ended = True
            waiting = list(self._waiting) if cancel_futures else []
            self._changed.notify_all()
        for call in waiting:
            call.cancel()

    def _staff(self) -> None:
        """See to it that somebody takes what waits, as far as there are places."""
        if self._idle >= len(self._waiting):
            self._changed.notify()
        elif self._taken < self._most:
            self._taken += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _release(self, call: Call) -> None:
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

    def _next(self) -> Call | None:
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


async def in_threads(threads: Threads, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in one of ``threads``, as ``asyncio.to_thread`` does."""
    context = contextvars.copy_context()
    return await asyncio.wrap_future(threads.submit(context.run, function, *arguments))
