"""A tool call while it is read."""

from __future__ import annotations

from agentrl.tokens.incremental.told import Told
from agentrl.tokens.incremental.written import WrittenCall
from agentrl.tokens.tool_calls import read_call, unescaped

__all__ = ["Call"]


class Call:
    """One call while it is read."""

    def __init__(self, told: Told, index: int | None = None) -> None:
        """``index`` is its number if it has been told already."""
        self._told = told
        self._written = WrittenCall()
        self._index = index

    def add(self, text: str) -> None:
        """Tell what more ``text`` of the call makes certain."""
        arguments = self._written.add(text)
        if self._index is None and self._written.name is not None:
            self._index = self._told.begin_call(unescaped(self._written.name))
        if arguments and self._index is not None:
            self._told.go_on(self._index, arguments)

    def end(self, raw: str, name: object = None, arguments: object = None, call_id: str | None = None) -> None:
        """Tell the rest of the call whose whole text is ``raw``; the others are what a parser found in it."""
        function = read_call(raw, name, arguments)
        if function is None:
            self._told.unread(raw)
            return
        if self._index is None:
            self._index = self._told.begin_call(function["name"], call_id)
        self._told.complete(self._index, function["arguments"])
