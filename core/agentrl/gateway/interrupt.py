"""Ends what a task is awaiting, from any thread, with an error instead of a cancellation."""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["Interruptible"]


class Interruptible:
    """A block of a task that ``interrupt`` ends by raising in it.

    The task itself is not cancelled: whoever called the block's function sees the error, as with
    ``asyncio.timeout``. It costs no task of its own.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._error: Exception | None = None

    def interrupt(self, error: Exception) -> None:
        """Raise ``error`` in the block, once, unless it has ended; from any thread."""
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
