"""An event loop on a thread of its own, so that a test can wait with a deadline even where code blocks the loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import pytest

from agentrl.agents.exceptions import code_location
from agentrl.loops import Loop

__all__ = ["LoopThread"]

Result = TypeVar("Result")

_GRACE_S = 2.0
"""Seconds that a cancelled coroutine may take to end."""


class LoopThread:
    """Runs one coroutine after another, all on one event loop, as a training run does.

    A blocked loop cannot be freed: it is left behind, and the next coroutine runs on a new one.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, main: Coroutine[Any, Any, Result], *, deadline_s: float, what: str) -> Result:
        """Returns the result of ``main``. Fails the test where ``what`` has not ended after ``deadline_s`` seconds."""
        future: Future[Result] = asyncio.run_coroutine_threadsafe(main, self._started())
        if wait([future], deadline_s).done:
            return future.result()
        location = self._location()
        future.cancel()
        blocked = not self._answers()
        if blocked:
            self._loop = self._thread = None
        state = f"its event loop is blocked{location}: nothing else runs meanwhile" if blocked else "it waits"
        pytest.fail(f"{what} did not end within {deadline_s:g} s; {state}", pytrace=False)

    def close(self) -> None:
        """Cancel what still runs on the loop and end the thread. Safe to call twice."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_GRACE_S)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = loop = Loop()
            self._thread = threading.Thread(target=_serve, args=[loop], name="agentrl-testing", daemon=True)
            self._thread.start()
        return self._loop

    def _answers(self) -> bool:
        """Whether the loop still runs callbacks; a coroutine that was cancelled ends meanwhile."""
        answered = threading.Event()
        self._started().call_soon_threadsafe(answered.set)
        return answered.wait(_GRACE_S)

    def _location(self) -> str:
        """Where in the author's code the thread is now."""
        frame = sys._current_frames().get(self._thread.ident or 0) if self._thread else None
        return code_location(traceback.extract_stack(frame)) if frame else ""


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
