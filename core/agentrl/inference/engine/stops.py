"""Stop strings: found in the text of a completion as its tokens come, also across tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Decodes", "StopStrings"]


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], **kwargs: bool) -> str: ...


class StopStrings:
    """Looks for stop strings in one completion's growing ids."""

    def __init__(self, tokenizer: Decodes, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = strings
        # A token is at least one byte of text, so this many hold any string that the newest one completes;
        # the rest makes up for a character that the window's first token may cut.
        self._window = max(len(string.encode()) for string in strings) + 8

    def found(self, ids: Sequence[int]) -> str | None:
        """The stop string that comes first in the text, if it holds one now and did not before the last id."""
        if self._first(self._decode(ids[-self._window :])) is None:
            return None
        return self._first(self._decode(ids))

    def _first(self, text: str) -> str | None:
        starts = [(text.find(string), string) for string in self._strings if string in text]
        return min(starts)[1] if starts else None

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
