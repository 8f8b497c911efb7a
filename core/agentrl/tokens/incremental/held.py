"""Text that is held back until it is certain."""

from __future__ import annotations

__all__ = ["Held", "overlap"]


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``mark``."""
    most = min(len(mark) - 1, len(text))
    if most < 1 or mark[0] not in text[-most:]:
        return 0
    return next((length for length in range(most, 0, -1) if text.endswith(mark[:length])), 0)


class Held:
    """A text without the white space around it and without what may be the beginning of a mark at its end."""

    __slots__ = ("_begun", "_left", "_mark", "_right", "text")

    def __init__(self, mark: str, *, left: bool, right: bool) -> None:
        self._mark, self._left, self._right = mark, left, right
        self._begun = False
        self.text = ""
        """What is held back."""

    def add(self, text: str) -> str:
        """Return what ``text`` makes certain."""
        text = self.text + text
        if self._left and not self._begun:
            text = text.lstrip()
        sure = text[: len(text) - overlap(text, self._mark)] if self._mark else text
        if self._right:
            sure = sure.rstrip()
        self.text = text[len(sure) :]
        self._begun = self._begun or bool(sure)
        return sure

    def end(self) -> str:
        """Return what is left at the end of the text."""
        text, self.text = self.text, ""
        return text.rstrip() if self._right else text
