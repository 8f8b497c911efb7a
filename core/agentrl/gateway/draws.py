"""What is random in a session: seeds that derive from the session's and from what is asked, never from when."""

from __future__ import annotations

import hashlib
import heapq
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Draw", "Draws"]


class Draw(NamedTuple):
    """What a call's randomness derives from; the session's seed is in both digests."""

    request: bytes
    """Of the request: equal ones share it."""
    call: bytes
    """Of the request and its number among equal ones: each has its own."""


class _Numbers:
    """Numbers from 0, the smallest first; one that is given back is the next to be taken."""

    def __init__(self) -> None:
        self._given_back: list[int] = []
        self._fresh = 0

    def take(self) -> int:
        if self._given_back:
            return heapq.heappop(self._given_back)
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, number: int) -> None:
        heapq.heappush(self._given_back, number)


class Draws:
    """The draws of one session; use it from any thread."""

    def __init__(self, seed_key: tuple[int | str, ...]) -> None:
        self._seed = hashlib.sha256(repr(seed_key).encode())
        self._numbers: dict[bytes, _Numbers] = {}
        self._lock = threading.Lock()

    @contextmanager
    def numbered(self, prompt_ids: Sequence[int], fields: str) -> Iterator[Draw]:
        """What everything random about this request derives from: the session's seed and the request itself.

        Equal are requests with the same prompt, which is the parent chain and the messages as the model
        sees them, and the same sampling ``fields``; when they arrive plays no part. A request that fails
        gives its number among equal ones back.
        """
        shared = self._seed.copy()
        shared.update(array("q", prompt_ids).tobytes())
        shared.update(fields.encode())
        key = shared.digest()
        with self._lock:
            numbers = self._numbers.setdefault(key, _Numbers())
            number = numbers.take()
        try:
            yield Draw(key, hashlib.sha256(key + number.to_bytes(4)).digest())
        except BaseException:
            with self._lock:
                numbers.give_back(number)
            raise

    def mixed(self, seed: int) -> int:
        """A request's own ``seed`` as this session's: another one in every episode, and below 2**31."""
        digest = self._seed.copy()
        digest.update(repr(seed).encode())
        return int.from_bytes(digest.digest()[:4]) >> 1
