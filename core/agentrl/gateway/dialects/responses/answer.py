"""The output of a response while it grows: its items, and the events that tell of them.

An answer that is given whole goes the same way, in one step and without anybody who reads the events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentrl.gateway.contract import CallDelta, Completion, Delta, ModelRequest, Tokens
from agentrl.gateway.dialects.responses.free_text import FreeText
from agentrl.gateway.dialects.responses.items import Made
from agentrl.gateway.dialects.responses.request import ENCRYPTED, summarised
from agentrl.gateway.dialects.responses.spoken import Spoken
from agentrl.gateway.dialects.tools import custom_names
from agentrl.gateway.dialects.writing import logprobs_of

__all__ = ["Answer"]

Event = dict[str, Any]
"""An event without its number."""


class Answer:
    """The output items of one response. Each method returns the events of what it adds."""

    def __init__(self, asked: ModelRequest, handle: str, note: Callable[[str, Made], None]) -> None:
        """``handle`` stands for the answer's thinking, and ``note`` is told of each call that was made."""
        self.output: list[dict[str, Any]] = []
        """The items, of which the last one may still grow."""
        self._asked = asked
        self._handle = handle if ENCRYPTED in (asked.body.get("include") or ()) else None
        self._note = note
        self._custom = custom_names(asked.body.get("tools"))
        self._spoken = Spoken()
        self._open: _Item | None = None

    def add(self, delta: Delta) -> list[Event]:
        """Add what was sampled next."""
        if self._asked.logprobs and delta.tokens.ids:
            self._spoken.add(delta.tokens)
        events: list[Event] = []
        if delta.reasoning:
            events += self._item(_Thought)
            events += self._grow(delta.reasoning)
        if delta.content:
            events += self._item(_Message)
            events += self._grow(delta.content)
        for call in delta.calls:
            events += self._call(call)
        return events

    def end(self, completion: Completion) -> list[Event]:
        """End the output: nothing more is sampled."""
        status = "incomplete" if completion.call.finish_reason == "length" else "completed"
        events = self._close(status)
        if all(item["type"] == "reasoning" for item in self.output):
            events += self._item(_Message)  # A client that drops thinking keeps that there was a turn.
            events += self._close(status)
        return events

    def _item(self, kind: type[_Thought] | type[_Message]) -> list[Event]:
        """Have an item of ``kind`` open."""
        if isinstance(self._open, kind):
            return []
        events = self._close("completed")
        summary = summarised(self._asked.body)
        item = _Thought(self._place("rs"), summary, self._handle) if kind is _Thought else _Message(self._place("msg"))
        return events + self._begin(item)

    def _call(self, call: CallDelta) -> list[Event]:
        events: list[Event] = []
        if not isinstance(self._open, _Call) or self._open.number != call.index:
            events += self._close("completed")
            kind = _CustomCall if call.name in self._custom else _Call
            events += self._begin(kind(self._place("ctc" if kind is _CustomCall else "fc"), call))
        return events + self._grow(call.arguments)

    def _place(self, prefix: str) -> Event:
        index = len(self.output)
        name = self._asked.call_id.removeprefix("resp_")
        return {"item_id": f"{prefix}_{name}{index:02x}", "output_index": index}

    def _begin(self, item: _Item) -> list[Event]:
        self._open = item
        self.output.append(item.item)
        return item.begin()

    def _grow(self, text: str) -> list[Event]:
        tokens = self._spoken.take(text) if self._asked.logprobs else Tokens()
        return self._open.more(text, tokens) if self._open is not None else []

    def _close(self, status: str) -> list[Event]:
        if self._open is None:
            return []
        closed, self._open = self._open, None
        events = closed.end(status)
        if isinstance(closed, _Call):
            self._note(closed.item["call_id"], Made(self._asked.call_id, closed.unsaid))
        return events


class _Item:
    """An output item while it grows."""

    def __init__(self, place: Event, item: dict[str, Any]) -> None:
        self.item = {"id": place["item_id"], "status": "in_progress", **item}
        """The item as far as it is there."""
        self.place = place
        """Where its events belong."""

    def begin(self) -> list[Event]:
        """The events with which it begins."""
        return [_whole("response.output_item.added", self.place, dict(self.item))]

    def more(self, text: str, tokens: Tokens) -> list[Event]:
        """The events of ``text``, which comes in ``tokens``, if these are wanted."""
        raise NotImplementedError

    def end(self, status: str) -> list[Event]:
        """The events with which it ends."""
        self.item["status"] = status
        return [_whole("response.output_item.done", self.place, self.item)]


class _Text(_Item):
    """An item with one text in one part."""

    def __init__(self, place: Event, item: dict[str, Any], part: dict[str, Any], names: tuple[str, str, str]) -> None:
        """``part`` is the part without text. ``names`` are those of the item's field that holds parts, of the events of
        a part, and of the events of its text."""
        super().__init__(place, item)
        self._part = part
        self._holder, self._of_part, self._of_text = names
        self._part_place = {**place, f"{self._holder}_index": 0}

    def begin(self) -> list[Event]:
        added = {"type": f"response.{self._of_part}.added", **self._part_place, "part": dict(self._part)}
        return [*super().begin(), added]

    def more(self, text: str, tokens: Tokens) -> list[Event]:
        self._part["text"] += text
        logprobs = self._logprobs(tokens)
        return [{"type": f"response.{self._of_text}.delta", **self._part_place, "delta": text, **logprobs}]

    def end(self, status: str) -> list[Event]:
        self.item[self._holder] = [self._part]
        said: Event = {name: self._part[name] for name in ("text", "logprobs") if name in self._part}
        return [
            {"type": f"response.{self._of_text}.done", **self._part_place, **said},
            {"type": f"response.{self._of_part}.done", **self._part_place, "part": self._part},
            *super().end(status),
        ]

    def _logprobs(self, tokens: Tokens) -> dict[str, Any]:
        if "logprobs" not in self._part:
            return {}
        logprobs = logprobs_of(tokens)
        self._part["logprobs"] += logprobs
        return {"logprobs": logprobs}


class _Message(_Text):
    """What the policy says."""

    def __init__(self, place: Event) -> None:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"type": "message", "role": "assistant", "content": []}
        super().__init__(place, item, part, ("content", "content_part", "output_text"))


class _Thought(_Text):
    """What the policy thinks: as it is, or, where a summary is asked for, as the summary, of which nothing is left
    out."""

    def __init__(self, place: Event, summary: bool, handle: str | None) -> None:
        item: dict[str, Any] = {"type": "reasoning", "summary": []}
        if handle is not None:
            item["encrypted_content"] = handle
        if summary:
            names = ("summary", "reasoning_summary_part", "reasoning_summary_text")
            super().__init__(place, item, {"type": "summary_text", "text": ""}, names)
        else:
            names = ("content", "content_part", "reasoning_text")
            super().__init__(place, item | {"content": []}, {"type": "reasoning_text", "text": ""}, names)


class _Call(_Item):
    """A call of a function."""

    unsaid: str | None = None
    """The arguments as the policy wrote them, where the item does not say them."""
    _said, _events = "arguments", "function_call_arguments"

    def __init__(self, place: Event, call: CallDelta) -> None:
        kind = "function_call" if self._said == "arguments" else "custom_tool_call"
        super().__init__(place, {"type": kind, "call_id": call.id, "name": call.name, self._said: ""})
        self.number = call.index

    def more(self, text: str, tokens: Tokens) -> list[Event]:
        if not text:
            return []
        self.item[self._said] += text
        return [{"type": f"response.{self._events}.delta", **self.place, "delta": text}]

    def end(self, status: str) -> list[Event]:
        said = {self._said: self.item[self._said], "name": self.item["name"]}
        return [{"type": f"response.{self._events}.done", **self.place, **said}, *super().end(status)]


class _CustomCall(_Call):
    """A call of a custom tool, which the policy makes as a call of the function that stands for it."""

    _said, _events = "input", "custom_tool_call_input"

    def __init__(self, place: Event, call: CallDelta) -> None:
        super().__init__(place, call)
        self._free = FreeText()

    def more(self, text: str, tokens: Tokens) -> list[Event]:
        return super().more(self._free.more(text), tokens)

    def end(self, status: str) -> list[Event]:
        rest = super().more(self._free.end(), Tokens())
        if not self._free.exact:
            self.unsaid = self._free.arguments
        return [*rest, *super().end(status)]


def _whole(kind: str, place: Event, item: dict[str, Any]) -> Event:
    return {"type": kind, "output_index": place["output_index"], "item": item}
