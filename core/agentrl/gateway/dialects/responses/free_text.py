"""The free text of a call of a custom tool, read while the policy writes the arguments that hold it."""

from __future__ import annotations

import json
import re

from agentrl.gateway.dialects.tools import INPUT, custom_input

__all__ = ["FreeText"]

_OPENING = re.compile(rf'\s*{{\s*"{INPUT}"\s*:\s*"')
_PIECE = re.compile(
    r'[^"\\]+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^u]', re.DOTALL
)
"""One piece of a JSON text: plain characters, two halves of a character, one of them, or another escape."""
_HALF = re.compile(r"\\u[dD][89abAB]..")
_ESCAPED_LENGTH = 6


class FreeText:
    """The text that a custom tool is called with.

    Arguments that hold no such text are that text themselves.
    """

    def __init__(self) -> None:
        self.text = ""
        """What has been read so far."""
        self._raw = ""
        self._at: int | None = None
        self._closed = False

    def more(self, arguments: str) -> str:
        """Read on: ``arguments`` is what follows. Returns the text that is new."""
        self._raw += arguments
        if self._at is None:
            opening = _OPENING.match(self._raw)
            if opening is None:
                return ""
            self._at = opening.end()
        new = self._pieces(self._at)
        self.text += new
        return new

    def end(self) -> str:
        """Return what is left of the text once the arguments are whole."""
        if self._at is not None:
            return ""
        self.text = _whole(custom_input(self._raw))
        return self.text

    @property
    def exact(self) -> bool:
        """Whether the arguments say no more than ``text``."""
        try:
            return bool(json.loads(self._raw) == {INPUT: self.text})
        except (ValueError, RecursionError):
            return False

    @property
    def arguments(self) -> str:
        """The arguments as the policy wrote them."""
        return self._raw

    def _pieces(self, at: int) -> str:
        out: list[str] = []
        raw = self._raw
        while not self._closed and (piece := _PIECE.match(raw, at)) is not None:
            escaped = piece[0]
            if _HALF.fullmatch(escaped) and _may_pair(raw[piece.end() : piece.end() + _ESCAPED_LENGTH]):
                break
            out.append(_unescaped(escaped) if escaped[0] == "\\" else escaped)
            at = piece.end()
        self._closed = self._closed or raw.startswith('"', at)
        self._at = at
        return "".join(out)


def _may_pair(following: str) -> bool:
    """Whether the other half of a character may still come, as far as its escape is there."""
    return len(following) < _ESCAPED_LENGTH and "\\u"[: len(following)] == following[:2]


def _unescaped(escaped: str) -> str:
    try:
        text = str(json.loads(f'"{escaped}"', strict=False))
    except ValueError:
        return escaped[1:]
    return _whole(text)


def _whole(text: str) -> str:
    """``text`` with a mark in place of each half of a character, which no client could send back."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
