"""The event loop of a worker, and what becomes of copies of the worker that an agent makes with ``os.fork``."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from agentrl.loops import AwakeClock, Loop

__all__ = ["WorkerLoop", "collect_rarely", "end_if_forked", "end_loop_in_forks"]

_YOUNG = 20_000
"""New objects after which those among them that nobody holds are collected."""

T = TypeVar("T")


def collect_rarely() -> None:
    """Keep what is imported by now out of garbage collections, and collect more rarely.

    Many episodes at once hold much that outlives a collection, to be traversed again at the next. Python's own
    threshold of 700 new objects is passed with every call.
    """
    gc.freeze()
    gc.set_threshold(max(_YOUNG, gc.get_threshold()[0]), *gc.get_threshold()[1:])


class WorkerLoop(Loop):
    """The rollout's event loop with two differences.

    A function that runs in a thread sees the context of the code that submitted it, as with ``asyncio.to_thread``, and
    therefore its episode's environment variables; a copy of the process that is forked there ends with the function.
    Its clock also stands still while the rollout is paused: Ctrl-Z stops the rollout alone, and deadlines of agents
    that wait for its answers must not pass meanwhile.
    """

    def __init__(self) -> None:
        rollout = _parent(os.getppid())  # Between it and this process is the supervisor.
        super().__init__(AwakeClock(asleep=lambda: _is_stopped(rollout)))

    def run_in_executor(  # type: ignore[override]  # The base's type says which arguments the function takes.
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """See ``asyncio``; a pool of processes gets ``func`` as it is."""
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            return super().run_in_executor(executor, func, *args)
        context = contextvars.copy_context()
        return super().run_in_executor(executor, _ending_in_forks(partial(context.run, func, *args)))


def _parent(process: int) -> int:
    return int(_stat(process)[1])


def _is_stopped(process: int) -> bool:
    """Whether a process is stopped; where the system does not say, it is not."""
    return _stat(process)[0] in "Tt"


def _stat(process: int) -> list[str]:
    """State, parent and more of a process from ``/proc``; where there is none, those of a running orphan."""
    try:
        # The name, in brackets, may hold anything.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ["R", "0"]


def end_if_forked(worker: int, error: BaseException | None = None) -> None:
    """Return in the process ``worker``; in a copy of it, whose code is over, end as a script that ends so would."""
    if os.getpid() == worker:
        return
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        os._exit((error.code or 0) & 0xFF)
    os._exit(0 if error is None else 1)


def _ending_in_forks(run: Callable[[], T]) -> Callable[[], T]:
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
