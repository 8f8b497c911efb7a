"""Running a coroutine to its end from synchronous code, and what Ctrl-C, SIGTERM and SIGHUP do meanwhile.

The first signal ends the run cleanly, the second ends the process at once.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import select
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from agentrl.loops import Loop

__all__ = ["Interrupts", "run_to_end"]

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 130
_RESUMABLE = 75
_PATIENCE_S = 5.0
"""Seconds within which a running event loop notices a cancellation."""
_GRACE_S = 5.0
"""Seconds that tasks have to end which are left when the coroutine has ended."""


class Interrupts:
    """A context in which SIGINT, SIGTERM and SIGHUP end the run cleanly; a signal that was ignored before stays so.

    The first signal calls ``announce`` and cancels the task that ``cancelling`` was given, or the next one that it is
    given. A second signal calls ``leave`` and ends the process with ``exit_code``, whatever runs in it: the code of an
    agent that will not end must not be waited for. SIGHUP does not count as a second signal, because a terminal that
    closes sends it twice, once itself and once through its shell.

    The signals are read by a thread of their own, from the pipe that Python's handler writes to. Python's handlers run
    in the main thread, so an agent that blocks that thread would delay them without end, and what they raise would be
    raised inside the agent. Only the main thread can install handlers; in any other thread this context does nothing.
    """

    def __init__(self, announce: Callable[[], None], leave: Callable[[], None], *, resumable: bool = False) -> None:
        """Both functions are called from the thread that reads the signals.

        ``resumable`` says that what is interrupted can be taken up again.
        """
        self._resumable = resumable
        self.arrived = False
        """Whether a signal has arrived."""
        self.first: int | None = None
        """The number of the first signal that has arrived."""
        self._announce = announce
        self._leave = leave
        self._end: Callable[[], None] = lambda: os._exit(self.exit_code)
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

    @property
    def exit_code(self) -> int:
        """130, or 75 where SIGTERM came first to what can be taken up again: so ends the run of a preempted machine."""
        return _RESUMABLE if self._resumable and self.first == signal.SIGTERM else _INTERRUPTED

    @property
    def name(self) -> str | None:
        """The name of the first signal that has arrived, such as ``SIGTERM``."""
        return None if self.first is None else signal.Signals(self.first).name

    def leave_by(self, end: Callable[[], None]) -> None:
        """Make the second signal call ``end`` instead of ending the process."""
        self._end = end

    @property
    def taken(self) -> Collection[int]:
        """The numbers of the signals that are handled at the moment."""
        return tuple(self._before)

    @contextlib.contextmanager
    def cancelling(
        self,
        task: asyncio.Task[Any],
        announce: Callable[[], None] | None = None,
        rescue: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """A context in which the first signal cancels ``task``, which runs on this thread's event loop.

        ``announce`` replaces the one of the constructor. Where the event loop does not notice the cancellation within
        5 s, because an agent's code blocks it, ``rescue`` is called from another thread, and the process then ends as
        by a second signal.
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
                except Exception:  # A callback failed; the next signal is to be handled all the same.
                    traceback.print_exc()
            elif self._wakeup_before >= 0:
                with contextlib.suppress(OSError):
                    os.write(self._wakeup_before, taken)

    def _answer(self, number: int) -> None:
        with self._lock:
            is_first, self.arrived, held = not self.arrived, True, self._held
            self.first = number if is_first else self.first
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
        """Whether the event loop notices in time, or a second signal arrives, which is handled next."""
        for _ in range(int(_PATIENCE_S / 0.05)):
            if held.noticed.wait(0.05) or select.select([self._read], [], [], 0)[0]:
                return True
        return False

    def _go(self) -> None:
        self._leave()
        self._end()


class _Cancelling:
    """A task that the first signal cancels, and how its cancellation is announced."""

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
    """Restore the default handlers in a copy of this process made by ``os.fork``."""
    interrupts = reference()
    if interrupts is not None and interrupts.taken:
        signal.set_wakeup_fd(-1)
        for number in interrupts.taken:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _ignore(*_: object) -> None:
    """Do nothing: the thread that reads the pipe handles the signal."""


def run_to_end(main: Callable[[], Coroutine[Any, Any, Result]], interrupts: Interrupts | None = None) -> Result:
    """Run the coroutine that ``main`` makes and return its result, also where an event loop runs already (notebooks).

    ``interrupts`` is the context that the caller has entered, if any. A second Ctrl-C then ends the process; in an
    interactive session, such as a notebook, it ends only this call, with ``KeyboardInterrupt``. Raises what the
    coroutine raises.
    """
    is_session = _is_session()
    if not is_session and not _has_loop():
        return _run(main)
    running: Future[asyncio.Task[Any]] = Future()
    ended: Future[Result] = Future()
    if is_session and interrupts is not None:
        interrupts.leave_by(lambda: _settle(ended, KeyboardInterrupt()))
    # A daemon, since a session that is left may end before it has.
    threading.Thread(target=_run_into, args=(main, running, ended), name="agentrl-run", daemon=True).start()
    try:
        return ended.result()
    except KeyboardInterrupt:
        if interrupts is None:
            _cancel(running, ended)
        raise


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_session() -> bool:
    """Whether the process is an interactive session: an interpreter's prompt, IPython or a notebook."""
    return hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")


def _run(main: Callable[[], Coroutine[Any, Any, Result]], begun: Future[asyncio.Task[Any]] | None = None) -> Result:
    async def alone() -> Result:
        if begun is not None and (task := asyncio.current_task()) is not None:
            begun.set_result(task)
        try:
            return await main()
        finally:
            await _end_others()

    runner = asyncio.Runner(loop_factory=Loop)
    try:
        return runner.run(alone())
    finally:
        # Closing would wait for ever for a task that does not end; such a loop is left behind and never runs again.
        if not asyncio.all_tasks(runner.get_loop()):
            runner.close()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_GRACE_S)


def _run_into(
    main: Callable[[], Coroutine[Any, Any, Result]], begun: Future[asyncio.Task[Any]], ended: Future[Result]
) -> None:
    try:
        result = _run(main, begun)
    except BaseException as error:  # Every error is passed to the caller.
        _settle(ended, error)
    else:
        with contextlib.suppress(Exception):  # The caller has left.
            ended.set_result(result)


def _settle(ended: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(Exception):  # The future has its result already.
        ended.set_exception(error)


def _cancel(running: Future[asyncio.Task[Any]], ended: Future[Any]) -> None:
    """Cancel the task and wait for its end; another Ctrl-C ends the waiting."""
    task = running.result()
    task.get_loop().call_soon_threadsafe(task.cancel)
    with contextlib.suppress(Exception, asyncio.CancelledError):
        ended.result()
