"""A watchdog for an event loop that runs episodes: code that blocks the loop stops every other episode."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from traceback import FrameSummary
from types import CodeType, FrameType, MappingProxyType, TracebackType
from typing import NamedTuple, Self

from agentrl.agents.exceptions import code_location
from agentrl.errors import EpisodeTimeout

__all__ = ["Blocked", "Holder", "LoopWatchdog"]


class Blocked(EpisodeTimeout):
    """Raised inside code that blocked the event loop for longer than an episode may take."""

    def __init__(self) -> None:
        super().__init__("the agent blocked the event loop past the episode's deadline", fix=_FIX)


_FIX = "await instead of blocking: AsyncOpenAI, asyncio.sleep, asyncio.to_thread; or use rollout.mode=subproc"


_AGAIN_S = 5.0
"""Seconds after which the error is raised again in code that has caught it and goes on."""

_HANDLES = asyncio.Handle._run.__code__.co_filename  # Every callback runs through it.

_WAITING = 0.02
"""A thread that uses less than this share of a processor waits for something else."""


class Holder(NamedTuple):
    """Code that may block the event loop, and what becomes of it."""

    name: str
    """What messages call it, such as ``the reward``."""
    error: type[BaseException]
    """Raised inside that code at the deadline; the class is called without arguments."""
    fix: str


class LoopWatchdog:
    """Watches the running event loop from a thread of its own.

    Where the loop has not come round for ``patience`` seconds, that is reported once, with the line of the agent's
    code that blocks it. After ``deadline`` seconds ``Blocked`` is raised inside that code, so that only its own episode
    fails, and again where the code catches it and goes on. A loop that is only slow because the machine is busy, or
    because a thousand tasks have a short step each, is not reported.
    """

    def __init__(
        self,
        agent: str | None,
        report: Callable[[str], None],
        *,
        patience: float = 2.0,
        deadline: float,
        harms: Callable[[], bool] = lambda: True,
        fix: str = _FIX,
        others: Mapping[CodeType, Holder] = MappingProxyType({}),
    ) -> None:
        """``report`` is called from the watchdog's thread, with a message that ends in ``fix``, if ``harms()``.

        ``agent`` is the name of the agent whose code runs on the loop, or ``None`` where the agent runs elsewhere.
        ``others`` maps the code of functions that call other authors' code on the loop, such as rewards, to who that
        is; a blocked loop is blamed on the innermost of them, else on the agent.
        """
        self._agent = None if agent is None else Holder(f"agent {agent!r}", Blocked, fix)
        self._others = others
        self._report = report
        self._patience = patience
        # An idle loop's newest beat is itself up to a quarter of the patience old.
        self._deadline = max(deadline, patience / 2)
        self._harms = harms
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agentrl-watchdog", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop_thread = threading.get_ident()
        self._loop = asyncio.get_running_loop()
        self._pulse()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._timer.cancel()
        self._thread.join(timeout=5)

    def _pulse(self) -> None:
        self._beat = self._loop.time()  # Which stands still in a pause of the process.
        self._used = time.thread_time()
        self._timer = self._loop.call_later(self._patience / 4, self._pulse)

    def _watch(self) -> None:
        reported = raised = 0.0
        due = self._deadline
        task, since = 0, 0.0
        while not self._stop.wait(self._patience / 4):
            beat, late = self._beat, self._loop.time() - self._beat
            if (now := id(asyncio.current_task(self._loop))) != task or late < since:
                task, since = now, late  # Another one runs than when it was looked at last.
            stands = late > self._patience and late - since > self._patience / 5
            if stands and reported != beat and self._is_held(late) and self._harms():
                reported = beat
                self._tell(late)
            if raised != beat:
                due = self._deadline
            if late > due and not _starts_a_thread(self._loop_thread) and (held := self._held()) is not None:
                raised, due = beat, late + _AGAIN_S
                _raise_in(self._loop_thread, held.by.error)

    def _is_held(self, late: float) -> bool:
        """Whether the loop's thread computes or waits; with a small share of a busy processor it does neither."""
        clock = getattr(time, "pthread_getcpuclockid", None)
        if clock is None:
            return True
        used = time.clock_gettime(clock(self._loop_thread)) - self._used
        return bool(used > self._patience / 2 or used < late * _WAITING)

    def _held(self) -> _Held | None:
        """By whom the loop's thread is held, and where.

        ``None`` for work of ours or of the loop's own, of which there may be much at once: an error raised there would
        break the run instead of an episode.
        """
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return None
        location = code_location(_within_loop(traceback.extract_stack(frame)))
        calling: FrameType | None = frame
        while calling is not None:
            if calling.f_code in self._others:
                return _Held(self._others[calling.f_code], location)
            calling = calling.f_back
        return _Held(self._agent, location) if self._agent is not None and location else None

    def _tell(self, late: float) -> None:
        if (held := self._held()) is not None:
            self._report(f"{held.by.name} has blocked the event loop for {late:.1f} s{held.location}: {held.by.fix}")


class _Held(NamedTuple):
    """What holds the loop's thread."""

    by: Holder
    location: str
    """The line of its author's code, as part of a sentence; empty where that is unknown."""


def _within_loop(stack: Sequence[FrameSummary]) -> Sequence[FrameSummary]:
    """The frames below the event loop's own: what it has called, without whoever runs the loop."""
    called = [index for index, frame in enumerate(stack) if frame.name == "_run" and frame.filename == _HANDLES]
    return stack[called[-1] + 1 :] if called else ()


def _starts_a_thread(thread: int) -> bool:
    """Whether a thread waits in ``Thread.start`` for one that it starts.

    Until the new thread runs, an error raised in the old one would end the new one, and the old would wait for ever.
    """
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not threading.Thread.start.__code__:
        frame = frame.f_back
    return frame is not None


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raise ``error`` in a thread at its next bytecode; CPython offers no other way into a busy loop."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
