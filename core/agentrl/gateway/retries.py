"""Retries: which requests of a session are one call, and what a retry is answered.

SDKs mark a request that they send again with a header. Attempt ``n`` at a call belongs to an attempt ``n - 1`` with
the same body that was seen here and of no use to its client: one that failed is made again, and an answer that was
lost on its way is given again. Equal bodies alone make no retry, because agents ask the same thing several times for
several samples. Nor does the mark alone where the first attempt was answered: the marked request may be a sample whose
first attempt failed before it came here. Only where the answered attempt was a retry itself is the next one taken to
follow it, since two samples that both came so late are very unlikely.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from agentrl.gateway.contract import Exchange, Reply

__all__ = ["RETRY_HEADER", "Attempt", "LastPart", "Retries", "parts", "retry_number"]

_log = logging.getLogger(__name__)

RETRY_HEADER = "x-stainless-retry-count"
"""The header by which an SDK says how often it has sent a request before."""

_MOST_RETRY_DIGITS = 9

State = Literal["lost", "failed", "under way", "answered"]
_FIRST: dict[State, int] = {"lost": 0, "failed": 1, "under way": 2, "answered": 3}
"""Which of several attempts a retry belongs to: first one whose client is known to have nothing, then one whose client
may be about to retry."""


def retry_number(header: str) -> int:
    """How often a request was sent before, by the value of its ``RETRY_HEADER``; 0 for what no SDK would write."""
    number = header.strip()
    return int(number) if number.isascii() and number.isdigit() and len(number) <= _MOST_RETRY_DIGITS else 0


class LastPart(bytes):
    """The last part of a body that comes in parts: whoever has it has the whole answer."""


async def parts(body: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The parts of a reply's body one after another. Closing this closes a body that is an async generator."""
    try:
        if isinstance(body, AsyncIterable):
            async for part in body:
                yield part
        else:
            for part in body:
                yield part
    except Exception:
        _log.exception("an answer broke off because its body raised an error")
        raise
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()


@dataclass(slots=True, eq=False)
class Attempt:
    """A call, and the latest attempt at it."""

    request: bytes
    """Digest of the request's path and body."""
    number: int
    """How often the call was attempted before."""
    state: State = "under way"
    reply: Reply | None = None
    """The answer, once there is one."""
    again: Callable[[], Reply] | None = None
    """Gives the answer once more, where the body of ``reply`` is an iterator, which is of no use twice."""
    arrived: Callable[[bool], None] | None = None
    """Is called with ``False`` where the client turns out not to have the answer, and with ``True`` where it has."""
    waiting: list[Future[bool]] = field(default_factory=list)
    """Retries that wait for the end of the attempt; told whether it was answered."""


class Retries:
    """The requests of one session. Safe to use from any thread."""

    def __init__(self) -> None:
        self._attempts: dict[bytes, list[Attempt]] = {}
        self._lock = threading.Lock()

    def take(self, exchange: Exchange, route: str = "") -> Attempt | Reply | Future[bool]:
        """What to do about a request to ``route``.

        An ``Attempt`` is to be made, and ended by ``succeed`` or ``fail``; a ``Reply`` is to be sent. A ``Future`` is
        that of an attempt under way, which the request may be a retry of: wait for it, then call this again.
        """
        digest = hashlib.blake2b(exchange.body, digest_size=16)
        digest.update(route.encode())
        request = digest.digest()
        number = retry_number(exchange.headers.get(RETRY_HEADER, ""))
        with self._lock:
            earlier = self._repeated(request, number - 1) if number else None
            if earlier is None:
                attempt = Attempt(request, number)
                self._attempts.setdefault(request, []).append(attempt)
                return attempt
            if earlier.state == "under way":
                ended: Future[bool] = Future()
                earlier.waiting.append(ended)
                return ended
            earlier.number = number
            reply = earlier.reply
            if reply is None:
                earlier.state = "under way"
                return earlier
            if earlier.state == "lost" and earlier.arrived is not None:
                earlier.arrived(True)
            earlier.state = "answered"
        return self._sent(earlier, reply if earlier.again is None else earlier.again())

    def _repeated(self, request: bytes, number: int) -> Attempt | None:
        """The attempt with this number that a retry may follow."""
        possible: Iterable[Attempt] = (
            attempt
            for attempt in self._attempts.get(request, ())
            if attempt.number == number and (attempt.state != "answered" or number > 0)
        )
        return min(possible, key=lambda attempt: _FIRST[attempt.state], default=None)

    def succeed(
        self,
        attempt: Attempt,
        reply: Reply,
        arrived: Callable[[bool], None],
        again: Callable[[], Reply] | None = None,
    ) -> Reply:
        """End an attempt with its answer, and return the reply to send.

        ``arrived`` is called with ``False`` where the client leaves before it has the whole answer, and with ``True``
        where it has it after all. An answer whose body is an iterator has not arrived before all of it was sent;
        ``again`` gives such an answer once more, for a retry of a lost one.
        """
        self._answer(attempt, reply, arrived, None if isinstance(reply.body, bytes) else again)
        return self._sent(attempt, reply)

    def stream(self, attempt: Attempt, reply: Reply, cancel: Callable[[], None]) -> Reply:
        """Return the reply to send while its answer is still being made.

        The attempt stays under way until ``streamed`` or ``fail`` ends it. ``cancel`` is called where the client
        leaves before that.
        """
        assert not isinstance(reply.body, bytes)
        number = attempt.number

        def lost() -> None:
            cancel()
            self._lost(attempt, number)

        return Reply(reply.status, self._parts(reply.body, attempt, number), reply.headers, lost)

    def streamed(self, attempt: Attempt, arrived: Callable[[bool], None], again: Callable[[], Reply]) -> None:
        """End an attempt whose answer was streamed, when all of it is made. It has not arrived yet."""
        self._answer(attempt, Reply(200, ()), arrived, again)
        arrived(False)

    def _answer(
        self, attempt: Attempt, reply: Reply, arrived: Callable[[bool], None], again: Callable[[], Reply] | None
    ) -> None:
        with self._lock:
            attempt.reply, attempt.arrived, attempt.again = reply, arrived, again
            attempt.state = "answered"
            if attempt.number == 0:  # Nobody can ask for it, unless it is lost.
                self._forget(attempt)
            self._end(attempt, answered=True)

    def fail(self, attempt: Attempt) -> None:
        """End an attempt that left no trace. Its next retry makes it again."""
        with self._lock:
            attempt.state = "failed"
            self._end(attempt, answered=False)

    def _sent(self, attempt: Attempt, reply: Reply) -> Reply:
        lost = partial(self._lost, attempt, attempt.number)
        body = reply.body
        if not isinstance(body, bytes):
            if attempt.arrived is not None:
                attempt.arrived(False)
            body = self._parts(body, attempt, attempt.number)
        return Reply(reply.status, body, reply.headers, lost)

    async def _parts(
        self, body: Iterable[bytes] | AsyncIterable[bytes], attempt: Attempt, number: int
    ) -> AsyncGenerator[bytes, None]:
        """The parts of a body. The answer has arrived with its last part, or once a part after that is asked for."""
        async with aclosing(parts(body)) as coming:
            async for part in coming:
                if isinstance(part, LastPart):
                    self._has_arrived(attempt, number)
                yield part
        self._has_arrived(attempt, number)

    def _has_arrived(self, attempt: Attempt, number: int) -> None:
        with self._lock:
            if attempt.number == number and attempt.state == "answered" and attempt.arrived is not None:
                attempt.arrived(True)

    def _lost(self, attempt: Attempt, number: int) -> None:
        """The client left before it had the answer to the attempt with this number."""
        with self._lock:
            if attempt.number != number or attempt.state != "answered":
                return
            attempt.state = "lost"
            same = self._attempts.setdefault(attempt.request, [])
            if attempt not in same:
                same.append(attempt)
            if attempt.arrived is not None:
                attempt.arrived(False)

    def _forget(self, attempt: Attempt) -> None:
        attempts = self._attempts[attempt.request]
        attempts.remove(attempt)
        if not attempts:
            del self._attempts[attempt.request]

    def _end(self, attempt: Attempt, *, answered: bool) -> None:
        waiting, attempt.waiting = attempt.waiting, []
        for ended in waiting:
            ended.set_result(answered)
