"""Copies of the worker that an agent makes with ``os.fork``: they run the agent's code and nothing of the worker's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

__all__ = ["end_if_forked", "end_loop_in_forks", "ending_in_forks"]

T = TypeVar("T")


def end_if_forked(worker: int, error: BaseException | None = None) -> None:
    """Return in the process ``worker``; in a copy of it, whose code is over, end as a script that ends so would."""
    if os.getpid() == worker:
        return
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        os._exit((error.code or 0) & 0xFF)
    os._exit(0 if error is None else 1)


def ending_in_forks(run: Callable[[], T]) -> Callable[[], T]:
    """``run`` for a thread of this process, which a copy of the process made in it is not to go on with."""
    worker = os.getpid()

    def guarded() -> T:
        try:
            result = run()
        except BaseException as error:
            end_if_forked(worker, error)
            raise
        end_if_forked(worker)
        return result

    return guarded


def end_loop_in_forks(loop: asyncio.AbstractEventLoop) -> None:
    """End a copy of this process as soon as the code that forked waits for something.

    Its event loop shares descriptors with the original's, and holds the other episodes: none of them may go on
    in the copy. So what is ready is dropped there, and the end is what is ready.
    """

    def end_next() -> None:
        loop._ready.clear()  # type: ignore[attr-defined]
        loop.call_soon(os._exit, 0)

    os.register_at_fork(after_in_child=end_next)
