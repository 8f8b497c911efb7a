"""Ctrl-C, SIGTERM and SIGHUP: the first ends a run cleanly, the second at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from agentrl.loops import run_in_thread

__all__ = ["Interrupts", "finish", "finish_in_thread"]

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 130
_PATIENCE_S = 5.0
"""How long an event loop may take to notice that it is told something."""


class Interrupts:
    """Within it, SIGINT, SIGTERM and SIGHUP are the run's to answer; one that is ignored stays so.

    The first is announced, and cancels the task that ``cancelling`` holds; where it holds none yet, the next. A second
    one calls ``leave`` and ends the process with exit code 130, whatever goes on in it: code of an agent that will
    not end must not be waited for. SIGHUP is never a second: a terminal that closes sends it, and so does its shell.

    A thread of its own takes the signals, from the pipe that Python's handler writes to: handlers in Python run when
    the main thread comes to it, and never where an agent blocks that, and what is raised in the main thread may be
    raised in them. Only the main thread can ask for signals; elsewhere nothing happens here.
    """

    def __init__(self, announce: Callable[[], None], leave: Callable[[], None]) -> None:
        """Both are called from that thread."""
        self.arrived = False
        """Whether there was one."""
        self._announce = announce
        self._leave = leave
        self._end: Callable[[], None] = lambda: os._exit(_INTERRUPTED)
        self._held: _Cancelling | None = None
        self._lock = threading.Lock()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._before:
            return
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before, warn_on_full_buffer=False)
        os.close(self._written)
        self._thread.join()
        os.close(self._read)

    def leave_by(self, end: Callable[[], None]) -> None:
        """Have the second signal call ``end`` instead of ending the process."""
        self._end = end

    @property
    def taken(self) -> Collection[int]:
        """The signals that it answers now."""
        return tuple(self._before)

    @contextlib.contextmanager
    def cancelling(
        self,
        task: asyncio.Task[Any],
        announce: Callable[[], None] | None = None,
        rescue: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Within it, the first signal cancels ``task``, which runs on this thread's event loop.

        It is announced by ``announce`` instead. Where the event loop does not notice, because an agent holds it,
        ``rescue`` is called from another thread, and then the process is left as by a second signal.
        """
        held = _Cancelling(task, announce or self._announce, rescue)
        with self._lock:
            self._held = held
            if self.arrived:
                task.cancel()
        try:
            yield
        finally:
            held.noticed.set()
            with self._lock:
                self._held = None

    def _take(self) -> None:
        numbers = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._read, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._wakeup_before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, args=(set(numbers),), name="agentrl-signals", daemon=True)
        self._thread.start()
        self._before = {number: signal.signal(number, _ignore) for number in numbers}
        os.register_at_fork(after_in_child=partial(_end_in_child, weakref.ref(self)))

    def _listen(self, numbers: set[int]) -> None:
        while taken := os.read(self._read, 1):
            if taken[0] in numbers:
                try:
                    self._answer(taken[0])
                except Exception:  # Of whoever is told. The next signal is to be answered all the same.
                    traceback.print_exc()
            elif self._wakeup_before >= 0:
                with contextlib.suppress(OSError):
                    os.write(self._wakeup_before, taken)

    def _answer(self, number: int) -> None:
        with self._lock:
            is_first, self.arrived, held = not self.arrived, True, self._held
            if is_first and held is not None:
                held.cancel()
        if not is_first:
            if number != signal.SIGHUP:
                self._go()
        elif held is None:
            self._announce()
        else:
            held.announce()
            if not self._is_noticed(held):
                try:
                    held.rescue()
                finally:
                    self._go()

    def _is_noticed(self, held: _Cancelling) -> bool:
        """Whether the event loop hears of it in time; a second signal is answered meanwhile."""
        for _ in range(int(_PATIENCE_S / 0.05)):
            if held.noticed.wait(0.05) or select.select([self._read], [], [], 0)[0]:
                return True
        return False

    def _go(self) -> None:
        self._leave()
        self._end()


class _Cancelling:
    """A task that the first signal cancels."""

    def __init__(self, task: asyncio.Task[Any], announce: Callable[[], None], rescue: Callable[[], None]) -> None:
        self.announce = announce
        self.rescue = rescue
        self.noticed = threading.Event()
        self._task = task
        self._loop = task.get_loop()

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if not self.noticed.is_set():
            self.noticed.set()
            self._task.cancel()


def _end_in_child(reference: weakref.ref[Interrupts]) -> None:
    """In a copy of this process, made by ``os.fork``, signals are nobody's but its own."""
    interrupts = reference()
    if interrupts is not None and interrupts.taken:
        signal.set_wakeup_fd(-1)
        for number in interrupts.taken:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _ignore(*_: object) -> None:
    """The answer is given where the signals are read."""


async def finish_in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run ``function`` in a thread and, even when cancelled, wait until it has ended.

    A thread cannot be stopped: leaving an optimiser step behind would tear the weights that are
    about to be saved.
    """
    return await finish(run_in_thread(function, *arguments))


async def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Await ``work`` and, even when cancelled, wait until it has ended; what it raises then goes first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        task.result()
        raise
