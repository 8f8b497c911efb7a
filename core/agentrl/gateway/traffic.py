"""The traffic of a gateway: how many of its calls are under way, and how many sessions are about to make their first.

It has no lock: each change is one operation on a set or a dict, which no other thread can see half done. So sessions
never wait for each other here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Traffic"]

_SOON_S = 5.0
"""Seconds after which a session that has made no call yet is no longer expected to make one at any moment."""


class Traffic:
    """Counts calls and sessions. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: set[object] = set()
        self._silent: dict[str, float] = {}
        self._told: deque[Callable[[], None]] = deque()

    @property
    def under_way(self) -> int:
        """How many calls wait for the model now."""
        return len(self._calls)

    @property
    def expected(self) -> int:
        """How many sessions were opened in the last few seconds and have made no call yet."""
        while self._silent:
            try:
                session, opened = next(iter(self._silent.items()))
            except (RuntimeError, StopIteration):  # Another thread has just changed it.
                continue
            if self._clock() - opened < _SOON_S:
                break
            self._silent.pop(session, None)
        return len(self._silent)

    def opened(self, session: str) -> None:
        """A session opens."""
        self._silent[session] = self._clock()

    def began(self, session: str, call: object) -> None:
        """A call of ``session`` begins to wait for the model."""
        self._calls.add(call)
        self._silent.pop(session, None)

    def ended(self, call: object) -> None:
        """A call waits no more. Safe to call twice."""
        self._calls.discard(call)
        self._tell()

    def closed(self, session: str) -> None:
        """A session has ended. Safe to call twice."""
        if self._silent.pop(session, None) is not None:
            self._tell()

    def tell_once(self, told: Callable[[], None]) -> None:
        """Call ``told``, on whatever thread that is, the next time there is less to do."""
        self._told.append(told)

    def _tell(self) -> None:
        while self._told:
            with suppress(IndexError):  # Another thread has taken the last.
                self._told.popleft()()
