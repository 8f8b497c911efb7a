"""Calls in JSON while they are being written: how much of their arguments is certain."""

from __future__ import annotations

import re

__all__ = ["Balance", "WrittenCall"]

_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\[])', re.DOTALL
)
_LONGEST_HEAD = 1024
"""Characters. Names are short; what does not look like a call by then is not looked at again and again."""
_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')


class Balance:
    """Follows the brackets of a JSON value that arrives bit by bit."""

    __slots__ = ("_escaped", "depth", "in_string")

    def __init__(self) -> None:
        self.depth = 0
        """How many brackets are open."""
        self.in_string = False
        self._escaped = False

    def scan(self, text: str) -> int | None:
        """Go on with ``text``, and return where in it the outermost bracket closes, if it does."""
        at = 0
        if self._escaped and text:
            self._escaped, at = False, 1
        while found := (_IN_STRING if self.in_string else _OUTSIDE).search(text, at):
            char, at = found[0], found.end()
            if char == '"':
                self.in_string = not self.in_string
            elif char == "\\":
                self._escaped = at == len(text)
                at += 1
            elif char in "{[":
                self.depth += 1
            else:
                self.depth -= 1
                if self.depth <= 0:
                    return at
        return None


class WrittenCall:
    """One call, whose text ``{"name": …, "arguments": …}`` arrives bit by bit.

    What it gives is part of what ``read_call`` reads from the whole text, whether that turns out to be valid or not.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """The name as it is spelled, as soon as name and arguments have begun."""
        self._head = ""
        self._held = ""
        self._balance = Balance()
        self._tried = False
        self._closed = False

    def add(self, text: str) -> str:
        """Return what ``text`` makes certain of the arguments."""
        if self.name is None:
            if self._tried:
                return ""
            self._head += text
            found = _HEAD.match(self._head)
            if found is None:
                self._tried = len(self._head) > _LONGEST_HEAD
                return ""
            self.name, text, self._head = found[1], self._head[found.end() :], ""
        if self._closed:
            return self._after(text)
        end = self._balance.scan(text)
        if end is None:
            # Of arguments that break off, white space at the end and one brace are left out.
            self._held += text
            sure = self._held.rstrip().removesuffix("}")
            self._held = self._held[len(sure) :]
            return sure
        self._closed = True
        self._held += text[:end]
        return self._after(text[end:])

    def _after(self, text: str) -> str:
        if not text.strip():
            return ""
        sure, self._held = self._held, ""
        return sure
