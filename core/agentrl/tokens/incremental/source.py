"""The ids of a completion as they come, read as the texts of its parts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

from agentrl.tokens.incremental.decoding import Decoder, Pieces

__all__ = ["NO_MARKS", "Source", "Steps"]

_T = TypeVar("_T")
Steps = Generator[None, Sequence[int] | None, _T]
"""A reader of a part. It is sent ids as they come, and ``None`` at the end."""

NO_MARKS = frozenset[int]()


class Source:
    """What has come of a completion and has not been read."""

    def __init__(self, pieces: Pieces, stop_ids: frozenset[int]) -> None:
        self._pieces = pieces
        self._stop_ids = stop_ids
        self._queue: Sequence[int] = ()
        self._ended = False
        self._over = False
        """Whether the end of the last text has been read."""
        self.decoder = Decoder(pieces)
        """Decodes the present part: each is a text of its own."""

    @property
    def next(self) -> int | None:
        """The next id, if it has come."""
        return self._queue[0] if self._queue else None

    def begin(self) -> None:
        """Begin another part."""
        self.decoder = Decoder(self._pieces)

    def put_back(self, ids: Sequence[int]) -> None:
        """Have ``ids`` read next."""
        self._queue = [*ids, *self._queue]

    def read(self, marks: frozenset[int]) -> Steps[str | int | None]:
        """The next text; or one of ``marks``; or ``None`` at the end."""
        ids = yield from self.read_ids(marks)
        return ids if ids is None or isinstance(ids, int) else self.decoder.add(ids)

    def read_ids(self, marks: frozenset[int], most: int | None = None) -> Steps[Sequence[int] | int | None]:
        """The next ids before one of ``marks``, at most ``most``; or that mark; or ``None`` at the end."""
        while not self._queue:
            if self._ended:
                return None
            ids = yield
            if ids is None:
                self._ended = True
            else:
                self._queue = ids
        ids, stops = self._queue, self._stop_ids
        if most is not None:
            ids = ids[:most]
        if not (marks.isdisjoint(ids) and stops.isdisjoint(ids)):
            count = next(n for n, token in enumerate(ids) if token in marks or token in stops)
            ids = ids[:count]
            if count == 0:
                token, self._queue = self._queue[0], self._queue[1:]
                if token not in stops:
                    return token
                while (yield) is not None:  # What comes after the end of the turn is no part of it.
                    pass
                self._queue, self._ended = (), True
                return None
        self._queue = self._queue[len(ids) :]
        return ids

    def more(self) -> Steps[str | None]:
        """The next text where no token is a mark; ``None`` at the end."""
        if self._over:
            return None
        more = yield from self.read(NO_MARKS)
        if isinstance(more, str):
            return more
        self._over = True
        return self.decoder.end()
