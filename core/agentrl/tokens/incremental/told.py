"""What has been told of an assistant message while its completion is sampled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from agentrl.errors import encodable, shown
from agentrl.tokens.template import Message

__all__ = ["Added", "AddedCall", "Told"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddedCall:
    """What has been added to one tool call."""

    index: int
    """The call's number in the message, from 0."""
    id: str
    """The call's id, and its name below, when the call is new; empty later."""
    name: str
    arguments: str
    """The text that follows the arguments so far."""


class Added(NamedTuple):
    """What has been added to an assistant message; false where that is nothing."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[AddedCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


_NOTHING = Added()


class Told:
    """What has been told of a message, and what is new in it."""

    def __init__(self, call_ids: str) -> None:
        self._call_ids = call_ids
        self._reasoning, self._content = "", ""
        self._new_calls: list[AddedCall] = []
        self._strips = False
        self._all: list[Added] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        """The id, the name and the arguments of each call."""
        self._unread: list[str] = []

    def reason(self, text: str) -> None:
        self._reasoning += text

    def strip_content(self) -> None:
        """Leave out white space at the beginning of the content."""
        self._strips = True

    def say(self, text: str) -> None:
        if self._strips and text:
            text = text.lstrip()
            self._strips = not text
        self._content += text

    def begin_call(self, name: str, call_id: str | None = None) -> int:
        index = len(self._calls)
        call_id = encodable(call_id) if call_id else f"{self._call_ids}{index}"
        self._calls.append((call_id, name, []))
        self._new_calls.append(AddedCall(index, call_id, name, ""))
        return index

    def go_on(self, index: int, arguments: str) -> None:
        if not arguments:
            return
        self._calls[index][2].append(arguments)
        self._new_calls.append(AddedCall(index, "", "", arguments))

    def complete(self, index: int, arguments: str) -> None:
        self.go_on(index, _rest("".join(self._calls[index][2]), arguments))

    def unread(self, raw: str) -> None:
        """A call without a readable name is content, after all other content."""
        self._unread.append(raw)

    def new(self) -> Added:
        """Return what has been told since the last time."""
        if not (self._reasoning or self._content or self._new_calls):
            return _NOTHING
        added = Added(self._reasoning, self._content, _joined(self._new_calls))
        self._reasoning = self._content = ""
        self._new_calls = []
        self._all.append(added)
        return added

    def message(self) -> Message:
        """Return all that has been told, as a message."""
        said = "".join(added.content for added in self._all)
        content = "\n".join([*filter(None, [said]), *self._unread])
        reasoning = "".join(added.reasoning for added in self._all)
        calls = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for call_id, name, arguments in self._calls
        ]
        message: Message = {"role": "assistant", "content": content if content or not calls else None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message

    def rest(self, message: Mapping[str, Any]) -> Added:
        """Return what ``message`` has beyond what has been told."""
        reasoning = _rest("".join(added.reasoning for added in self._all), message.get("reasoning_content") or "")
        content = _rest("".join(added.content for added in self._all), message.get("content") or "")
        for index, call in enumerate(message.get("tool_calls") or ()):
            if index == len(self._calls):
                self.begin_call(call["function"]["name"], call["id"])
            elif self._calls[index][:2] != (call["id"], call["function"]["name"]):
                _log.error("a tool call was streamed as %r and read as %r", self._calls[index][:2], call)
            self.complete(index, call["function"]["arguments"])
        return Added(reasoning, content, _joined(self._new_calls))


def _rest(told: str, whole: str) -> str:
    if not whole.startswith(told):  # A fault of this module; what is recorded is right, and what was told is not.
        _log.error("%s was streamed and %s was read", shown(told, 80), shown(whole, 80))
        return ""
    return whole[len(told) :]


def _joined(calls: Sequence[AddedCall]) -> tuple[AddedCall, ...]:
    """The additions to calls, each call's own as one."""
    if len(calls) < 2:
        return tuple(calls)
    joined: dict[int, AddedCall] = {}
    for call in calls:
        known = joined.get(call.index)
        joined[call.index] = call if known is None else replace(known, arguments=known.arguments + call.arguments)
    return tuple(joined.values())
