"""Ctrl-C: the first ends a run cleanly, the second at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["cancelled_by_signal", "finish_in_thread"]

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def cancelled_by_signal(task: asyncio.Task[Any], announce: Callable[[], None]) -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM cancels ``task``; a second one stops the process at once.

    Only the main thread can take signals; elsewhere the caller cancels.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        announce()
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


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
