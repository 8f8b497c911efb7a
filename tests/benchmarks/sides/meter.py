"""CPU seconds of the parts of a run: by thread, and within the event loop's thread by coroutine."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Generator, MutableMapping
from typing import Any, Generic, TypeVar

__all__ = ["Metered", "thread_seconds"]

Result = TypeVar("Result")


class Metered(Generic[Result]):
    """Awaits ``awaitable`` and counts the CPU that its thread spends inside it, not what others do while it waits."""

    def __init__(self, awaitable: Awaitable[Result], name: str, seconds: MutableMapping[str, float]) -> None:
        self._awaitable = awaitable
        self._name = name
        self._seconds = seconds

    def __await__(self) -> Generator[Any, Any, Result]:
        inner = self._awaitable.__await__()
        resume, argument = inner.send, None
        while True:
            began = time.thread_time()
            try:
                yielded = resume(argument)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            finally:
                self._seconds[self._name] += time.thread_time() - began
            try:
                resume, argument = inner.send, (yield yielded)
            except BaseException as error:
                resume, argument = inner.throw, error


def thread_seconds() -> dict[str, float]:
    """CPU seconds of every Python thread that is alive, by its name."""
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.ident is not None
    }
