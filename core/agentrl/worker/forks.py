"""Copies of the worker that an agent makes with ``os.fork``: they run the agent's code and nothing of the worker's."""

from __future__ import annotations

import asyncio
import os
from typing import NoReturn

__all__ = ["end_if_forked", "end_loop_in_forks"]


def end_if_forked(worker: int, error: BaseException | None) -> None:
    """End a copy of the process ``worker`` whose agent code is over, as a script would, and return in ``worker``."""
    if os.getpid() != worker:
        _end(error)


def end_loop_in_forks(loop: asyncio.AbstractEventLoop) -> None:
    """End a copy of this process as soon as the code that forked waits for something.

    Its event loop shares descriptors with the original's, and holds the other episodes: none of them may go on
    in the copy. So what is ready is dropped there, and the end is what is ready.
    """

    def end_next() -> None:
        loop._ready.clear()  # type: ignore[attr-defined]
        loop.call_soon(os._exit, 0)

    os.register_at_fork(after_in_child=end_next)


def _end(error: BaseException | None) -> NoReturn:
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        os._exit((error.code or 0) & 0xFF)
    os._exit(0 if error is None else 1)
