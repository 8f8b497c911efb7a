"""Which requests are one: the retries that an SDK marks, and what they are retries of."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

from agentrl.gateway.exchange import Exchange, Reply

__all__ = ["Attempt", "Retries"]


@dataclass(slots=True, eq=False)
class Attempt:
    """One request being answered, and everyone who waits for its answer."""

    body: bytes
    """Digest of the request's body."""
    retry: int
    """The latest retry that joined it."""
    in_process: bool
    answer: Future[Reply | None] = field(default_factory=Future)
    """``None`` when it failed or was abandoned: whoever waits has to ask again."""


class Retries:
    """The requests of one session; use it from any thread.

    Equal bodies alone do not make a retry: agents ask the same thing several times for several samples.
    A marked retry joins the attempt that it repeats while that is under way, and also once it has
    succeeded, where its answer may have been lost on the way. After a failure it is a new attempt.
    """

    def __init__(self) -> None:
        self._attempts: dict[bytes, list[Attempt]] = {}
        self._failed: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def take(self, exchange: Exchange) -> tuple[Attempt, bool]:
        """The attempt that answers a request, and whether it is the caller's to make.

        Whoever makes it ends it with ``succeed`` or ``fail``; others wait for its ``answer``.
        """
        with self._lock:
            earlier = self._join(exchange)
            return (earlier, False) if earlier else (self._begin(exchange), True)

    def _join(self, exchange: Exchange) -> Attempt | None:
        """The attempt that a marked retry repeats; ``None`` where it has to be made."""
        if not exchange.retry:
            return None
        body = _digest(exchange)
        if self._failed[body]:
            self._failed[body] -= 1
            return None
        for attempt in self._attempts.get(body, ()):
            if attempt.retry < exchange.retry:
                attempt.retry = exchange.retry
                return attempt
        return None

    def _begin(self, exchange: Exchange) -> Attempt:
        attempt = Attempt(_digest(exchange), exchange.retry, exchange.in_process)
        self._attempts.setdefault(attempt.body, []).append(attempt)
        return attempt

    def succeed(self, attempt: Attempt, reply: Reply) -> None:
        """The attempt was answered. One whose answer is sure to arrive is forgotten."""
        if attempt.in_process:
            with self._lock:
                self._attempts[attempt.body].remove(attempt)
        attempt.answer.set_result(reply)

    def fail(self, attempt: Attempt) -> None:
        """The attempt left no trace; its next retry is an attempt of its own."""
        with self._lock:
            self._attempts[attempt.body].remove(attempt)
            self._failed[attempt.body] += 1
        attempt.answer.set_result(None)


def _digest(exchange: Exchange) -> bytes:
    return hashlib.blake2b(exchange.body, digest_size=16).digest()
