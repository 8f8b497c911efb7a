"""A listener: a tracker, or a plugin with hooks, that hears of a run in a thread of its own.

The run never waits for it while it goes on. Whoever does not return in time is given up, and the run goes on without.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agentrl.loops import TICK_S

__all__ = ["Failure", "Listener", "settle"]

_MOST_WAITING = 10_000
"""Calls that may wait for a listener that is slow but does return; they hold the episodes that they are about."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a listener hears nothing any more."""

    name: str
    """The listener's."""
    call: str
    """The call that it failed in, such as ``log``."""
    error: Exception | None = None
    """What the call raised; ``None`` where it did not return in time."""
    why: str = ""
    """In words, where nothing was raised: such as ``did not return from log within 60 s``."""


class Listener:
    """Makes calls one after another, in their order, in a daemon thread that starts with the first.

    After a call that raises, or that does not return within ``patience`` seconds, no other is made: ``failed`` is
    called once with the reason, in the listener's thread or in that of whoever noticed, and ``failure`` holds it. A
    call that is late is noticed by the next ``tell`` or ``settle``. ``clock`` returns seconds; by default it is the
    running event loop's, which stands still while the process is paused.
    """

    def __init__(
        self, name: str, patience: float, failed: Callable[[Failure], None], clock: Callable[[], float] | None = None
    ) -> None:
        self.name = name
        self.failure: Failure | None = None
        self._patience = patience
        self._failed = failed
        self._clock = clock or _clock()
        self._changed = threading.Condition()
        self._calls: deque[tuple[str, Callable[[], object]]] = deque()
        self._running: tuple[str, float] | None = None
        """The call that runs, and when it began."""
        self._thread: threading.Thread | None = None
        self._closed = False

    def tell(self, call: str, function: Callable[[], object]) -> None:
        """Have ``function`` called once the calls before it are made; ``call`` is what it is called in messages.

        Returns at once, and does nothing once the listener has failed or is closed.
        """
        with self._changed:
            failure = self._late() or self._behind()
            if failure is None and not self.failure and not self._closed:
                self._calls.append((call, function))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name=f"agentrl-{self.name}", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        self._report(failure)

    def settle(self, until: float) -> None:
        """Wait until every call is made or the listener has failed; past ``until``, by its clock, it has failed."""
        failure = None
        with self._changed:
            while (self._calls or self._running) and not self.failure and failure is None:
                self._changed.wait(min(TICK_S, max(until - self._clock(), 0)))
                failure = self._late(until)
        self._report(failure)

    def close(self) -> None:
        """Let the thread end once the calls are made; nothing is waited for. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def deadline(self) -> float:
        """When calls that wait now have to be made, by its clock."""
        return self._clock() + self._patience

    def _late(self, until: float | None = None) -> Failure | None:
        """The failure of a call that has run too long, or of those that are still to be made past ``until``."""
        if self.failure is not None:
            return None
        now = self._clock()
        if self._running is not None and now - self._running[1] > self._patience:
            call = self._running[0]
            return Failure(self.name, call, why=f"did not return from {call} within {self._patience:g} s")
        if until is not None and now >= until and (self._running or self._calls):
            left = len(self._calls) + (self._running is not None)
            call = self._running[0] if self._running else self._calls[0][0]
            return Failure(self.name, call, why=f"had {left} calls left {self._patience:g} s later")
        return None

    def _behind(self) -> Failure | None:
        if len(self._calls) < _MOST_WAITING or self.failure is not None:
            return None
        return Failure(self.name, self._calls[0][0], why=f"has fallen {len(self._calls):,} calls behind")

    def _report(self, failure: Failure | None) -> None:
        """Keep the first failure, drop the calls that wait, and tell whoever wants to know."""
        if failure is None:
            return
        with self._changed:
            if self.failure is not None:
                return
            self.failure = failure
            self._calls.clear()
            self._changed.notify_all()
        self._failed(failure)

    def _serve(self) -> None:
        while (taken := self._next()) is not None:
            call, function = taken
            failure = None
            try:
                function()
            except Exception as error:  # The boundary to somebody else's code; the owner decides what becomes of it.
                failure = Failure(self.name, call, error)
            finally:
                del function, taken  # What the call is about, such as an episode, is not kept until the next.
            self._report(failure)
            with self._changed:
                self._running = None
                self._changed.notify_all()

    def _next(self) -> tuple[str, Callable[[], object]] | None:
        with self._changed:
            while not self._calls:
                if self._closed or self.failure is not None:
                    return None
                self._changed.wait()
            taken = self._calls.popleft()
            self._running = taken[0], self._clock()
            return taken


def settle(listeners: Iterable[Listener]) -> None:
    """Wait until all calls of ``listeners`` are made, for all of them together as long as one call may take."""
    deadlines = [(listener, listener.deadline) for listener in listeners]
    for listener, until in deadlines:
        listener.settle(until)


def _clock() -> Callable[[], float]:
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic
