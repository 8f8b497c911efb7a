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
    """One request being answered."""

    body: bytes
    """Digest of the request's body."""
    retry: int
    """The latest retry that joined it."""
    in_process: bool
    reply: Reply | None = None
    waiting: list[Future[Reply | None]] = field(default_factory=list)
    """Who joined it. They get ``None`` when it failed or was abandoned, and have to ask again."""

    def end(self, reply: Reply | None) -> None:
        """Tell everyone who waits."""
        self.reply = reply
        for future in self.waiting:
            future.set_result(reply)


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

    def take(self, exchange: Exchange) -> Attempt | Future[Reply | None]:
        """A new attempt, for the caller to make and to end with ``succeed`` or ``fail``; for a marked retry
        of one that there is, its answer."""
        body = hashlib.blake2b(exchange.body, digest_size=16).digest()
        with self._lock:
            earlier = self._repeated(body, exchange.retry) if exchange.retry else None
            if earlier is None:
                attempt = Attempt(body, exchange.retry, exchange.in_process)
                self._attempts.setdefault(body, []).append(attempt)
                return attempt
            earlier.retry = exchange.retry
            return self._answer(earlier)

    def _repeated(self, body: bytes, retry: int) -> Attempt | None:
        """The attempt that a marked retry repeats; ``None`` where that failed."""
        if self._failed[body]:
            self._failed[body] -= 1
            return None
        return next((attempt for attempt in self._attempts.get(body, ()) if attempt.retry < retry), None)

    def _answer(self, attempt: Attempt) -> Future[Reply | None]:
        future: Future[Reply | None] = Future()
        if attempt.reply is not None:
            future.set_result(attempt.reply)
        else:
            attempt.waiting.append(future)
        return future

    def succeed(self, attempt: Attempt, reply: Reply) -> None:
        """The attempt was answered. One whose answer is sure to arrive is forgotten."""
        with self._lock:
            if attempt.in_process:
                self._attempts[attempt.body].remove(attempt)
            attempt.end(reply)

    def fail(self, attempt: Attempt) -> None:
        """The attempt left no trace; its next retry is an attempt of its own."""
        with self._lock:
            self._attempts[attempt.body].remove(attempt)
            self._failed[attempt.body] += 1
            attempt.end(None)
