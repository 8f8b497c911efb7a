"""Which requests are one: the retries that an SDK marks, and what they are retries of."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from agentrl.gateway.exchange import Exchange, Reply

__all__ = ["Attempt", "Retries"]

State = Literal["lost", "failed", "under way", "answered"]
_FIRST: dict[State, int] = {"lost": 0, "failed": 1, "under way": 2, "answered": 3}
"""Whom a retry is taken for, of several: who has tried in vain as far as is known, then who may be about to."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One call, and the latest attempt at it."""

    body: bytes
    """Digest of the request's body."""
    number: int
    """How often it was tried before."""
    state: State = "under way"
    reply: Reply | None = None
    arrived: Callable[[bool], None] | None = None
    """Is told that the answer was lost, and that it is given again."""
    waiting: list[Future[bool]] = field(default_factory=list)
    """Who wants to know how it ends: whether it was answered."""


class Retries:
    """The requests of one session; use it from any thread.

    Attempt ``n`` at a call belongs to an attempt ``n - 1`` with the same body that was seen and that was of no use to
    its client, and to nothing else: one that failed is made again, an answer that was lost is given again. Equal bodies
    alone do not make a retry, for agents ask the same thing several times for several samples; nor does the mark where
    the one before was answered, for a sample may have failed before it came here. Only where that was a retry too, is
    the next one taken to follow it: two samples that came here so late are one in a million.
    """

    def __init__(self) -> None:
        self._attempts: dict[bytes, list[Attempt]] = {}
        self._lock = threading.Lock()

    def take(self, exchange: Exchange) -> Attempt | Reply | Future[bool]:
        """What to do about a request: make the attempt and end it with ``succeed`` or ``fail``, give the reply again,
        or wait for an attempt that it may be the retry of, and take it then."""
        body = hashlib.blake2b(exchange.body, digest_size=16).digest()
        with self._lock:
            earlier = self._repeated(body, exchange.retry - 1) if exchange.retry else None
            if earlier is None:
                attempt = Attempt(body, exchange.retry)
                self._attempts.setdefault(body, []).append(attempt)
                return attempt
            if earlier.state == "under way":
                ended: Future[bool] = Future()
                earlier.waiting.append(ended)
                return ended
            earlier.number = exchange.retry
            return self._again(earlier)

    def _repeated(self, body: bytes, number: int) -> Attempt | None:
        """The attempt of this number that a retry may be one of."""
        possible: Iterable[Attempt] = (
            attempt
            for attempt in self._attempts.get(body, ())
            if attempt.number == number and (attempt.state != "answered" or number > 0)
        )
        return min(possible, key=lambda attempt: _FIRST[attempt.state], default=None)

    def _again(self, attempt: Attempt) -> Attempt | Reply:
        """An attempt that has ended, for its next: to be made, or its answer."""
        if attempt.reply is None:
            attempt.state = "under way"
            return attempt
        if attempt.state == "lost" and attempt.arrived is not None:
            attempt.arrived(True)
        return self._sent(attempt, attempt.reply)

    def _sent(self, attempt: Attempt, reply: Reply) -> Reply:
        attempt.state = "answered"
        return replace(reply, lost=partial(self._lost, attempt, attempt.number))

    def _lost(self, attempt: Attempt, number: int) -> None:
        """The client went before it had the answer to the attempt of this number."""
        with self._lock:
            if attempt.number != number or attempt.state != "answered":
                return
            attempt.state = "lost"
            same = self._attempts.setdefault(attempt.body, [])
            if attempt not in same:
                same.append(attempt)
            if attempt.arrived is not None:
                attempt.arrived(False)

    def succeed(self, attempt: Attempt, reply: Reply, arrived: Callable[[bool], None]) -> Reply:
        """The attempt was answered: the reply, to be sent. ``arrived`` is called with ``False`` where its client goes
        before it has the answer, and with ``True`` where that is given again."""
        with self._lock:
            attempt.reply, attempt.arrived = reply, arrived
            if attempt.number == 0:  # Nobody can ask for it, unless it is lost.
                self._forget(attempt)
            self._end(attempt, answered=True)
            return self._sent(attempt, reply)

    def fail(self, attempt: Attempt) -> None:
        """The attempt left no trace; its next retry makes it again."""
        with self._lock:
            attempt.state = "failed"
            self._end(attempt, answered=False)

    def _forget(self, attempt: Attempt) -> None:
        attempts = self._attempts[attempt.body]
        attempts.remove(attempt)
        if not attempts:
            del self._attempts[attempt.body]

    def _end(self, attempt: Attempt, *, answered: bool) -> None:
        waiting, attempt.waiting = attempt.waiting, []
        for ended in waiting:
            ended.set_result(answered)
