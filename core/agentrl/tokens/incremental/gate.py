"""The ids of a completion before a stop string."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from agentrl.tokens.incremental.decoding import Decoder, Pieces
from agentrl.tokens.incremental.held import overlap

__all__ = ["Gate"]


class Gate:
    """Holds back the ids of what may become a stop string, and all from a stop string on."""

    def __init__(self, pieces: Pieces, stop: Collection[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._first = re.compile(f"[{re.escape(''.join(text[0] for text in self._stop))}]" if self._stop else "(?!)")
        self._pieces = pieces
        self._decoder = Decoder(pieces)
        self._waiting: list[tuple[int, int]] = []
        """Ids, each with where its text ends in ``_text``."""
        self._text = ""
        self._found = False

    def passed(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids that are certain to be no part of a stop string."""
        if self._found:
            return ()
        if not self._waiting and self._decoder.settled and self._harmless(ids):
            return ids
        for token in ids:
            self._text += self._decoder.add((token,))
            self._waiting.append((token, len(self._text)))
        starts = [at for stop in self._stop if (at := self._text.find(stop)) >= 0]
        self._found = bool(starts)
        most = max((overlap(self._text, stop) for stop in self._stop), default=0)
        sure = min(starts, default=len(self._text) - most)
        count = next((n for n, (_, end) in enumerate(self._waiting) if end > sure), len(self._waiting))
        passed, waiting = self._waiting[:count], self._waiting[count:]
        cut = passed[-1][1] if passed else 0
        self._text = self._text[cut:]
        self._waiting = [(token, end - cut) for token, end in waiting]
        return [token for token, _ in passed]

    def _harmless(self, ids: Sequence[int]) -> bool:
        """Whether the text of ``ids``, if it is one without its neighbours, has no first character of a stop string."""
        try:
            return self._first.search("".join([self._pieces[token] for token in ids])) is None  # type: ignore[misc]
        except TypeError:
            return False
