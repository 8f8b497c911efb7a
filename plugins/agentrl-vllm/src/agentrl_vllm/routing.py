"""Which replica a request goes to."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Router"]

Replica = TypeVar("Replica", bound=Hashable)

_REMEMBERED = 65536
"""Sessions whose replica is kept in mind; they end without a word."""


class Router(Generic[Replica]):
    """A session stays with its replica, where its prefix is cached; a new one goes where least is under way.

    May be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: Counter[Replica] = Counter()
        self._sessions: OrderedDict[str, Replica] = OrderedDict()
        self._homes: Counter[Replica] = Counter()

    @contextmanager
    def lease(self, replicas: Sequence[Replica], session: str | None) -> Iterator[Replica]:
        """One of ``replicas``, which are at least one, for one request."""
        with self._lock:
            replica = self._choose(replicas, session)
            self._under_way[replica] += 1
        try:
            yield replica
        finally:
            with self._lock:
                self._under_way[replica] -= 1

    def _choose(self, replicas: Sequence[Replica], session: str | None) -> Replica:
        home = self._sessions.pop(session, None) if session is not None else None
        if home is not None:
            self._homes[home] -= 1
        # An episode that calls a tool right now comes back, so that equal loads are told apart by their sessions.
        free = min(replicas, key=lambda replica: (self._under_way[replica], self._homes[replica]))
        chosen = home if home is not None and home in replicas else free
        if session is not None:
            self._remember(session, chosen)
        return chosen

    def _remember(self, session: str, replica: Replica) -> None:
        self._sessions[session] = replica
        self._homes[replica] += 1
        if len(self._sessions) > _REMEMBERED:
            _, gone = self._sessions.popitem(last=False)
            self._homes[gone] -= 1
