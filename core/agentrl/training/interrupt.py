"""Ctrl-C: the first ends a run cleanly, the second at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["Interrupts", "finish_in_thread"]

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130


class Interrupts:
    """Within it, SIGINT and SIGTERM are the run's to answer.

    The first is announced, and cancels the task that ``cancelling`` holds at that moment; where it holds none,
    the run is about to end by itself. A second one calls ``leave`` and ends the process with exit code
    130, whatever goes on in it: code of an agent that will not end must not be waited for.
    Only the main thread can take signals; elsewhere nothing happens here.
    """

    def __init__(self, announce: Callable[[], None], leave: Callable[[], None]) -> None:
        self._announce = announce
        self._leave = leave
        self._task: asyncio.Task[Any] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            # Not the loop's own handlers: those would wait for an agent that blocks the loop.
            self._before = {number: signal.signal(number, self._first) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def cancelling(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Within it, the first signal cancels ``task``."""
        self._task = task
        try:
            yield
        finally:
            self._task = None

    def _first(self, *_: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._second)
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self._announce()
        if self._task is not None:
            self._task.cancel()

    def _second(self, *_: object) -> None:
        self._leave()
        os._exit(_INTERRUPTED)


async def finish_in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run ``function`` in a thread and, even when cancelled, wait until it has ended.

    A thread cannot be stopped: leaving an optimiser step behind would tear the weights that are
    about to be saved.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
