"""Running a coroutine to its end from code that is not asynchronous."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from agentrl.loops import Loop
from agentrl.training.interrupt import Interrupts

__all__ = ["run_to_end"]

Result = TypeVar("Result")

_GRACE_S = 5.0
"""How long tasks may take to end that are left when the coroutine has ended."""


def run_to_end(main: Callable[[], Coroutine[Any, Any, Result]], interrupts: Interrupts | None = None) -> Result:
    """Run a coroutine to its end, also for a caller who has an event loop already, as notebooks do.

    ``interrupts`` is what the caller has entered, if anything: a second Ctrl-C ends the process, but of somebody who
    works in it, as in a notebook, only the call.
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
    """Whether somebody types what this process does: an interpreter's prompt, IPython or a notebook."""
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
        # What will not end would be waited for without end: it is left behind, on a loop that never runs again.
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
    except BaseException as error:  # Whatever it is, it is the caller's.
        _settle(ended, error)
    else:
        with contextlib.suppress(Exception):  # The caller has left.
            ended.set_result(result)


def _settle(ended: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(Exception):  # It has ended otherwise.
        ended.set_exception(error)


def _cancel(running: Future[asyncio.Task[Any]], ended: Future[Any]) -> None:
    """End what runs, and wait for that; another Ctrl-C ends the waiting."""
    task = running.result()
    task.get_loop().call_soon_threadsafe(task.cancel)
    with contextlib.suppress(Exception, asyncio.CancelledError):
        ended.result()
