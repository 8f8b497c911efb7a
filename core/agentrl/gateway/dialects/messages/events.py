"""How a streamed answer is written in the Messages API: its blocks one after the other, as events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from agentrl.errors import GatewayError
from agentrl.gateway.contract import CallDelta, Completion, Delta, Event
from agentrl.gateway.dialects.messages.blocks import INVALID_JSON, tool_input
from agentrl.gateway.dialects.writing import server_event

__all__ = ["EventWriter", "message_events"]

_PING_S = 10.0
"""Seconds without an event after which one is sent that says nothing but that the answer is under way."""


class EventWriter:
    """Writes the deltas of one answer.

    The arguments of a tool call come as one piece, when the call is whole: clients read them as JSON, and what the
    policy writes need not be that. White space before a text is held back until the text comes.
    """

    def __init__(self, sign: Callable[[], str], *, tells_thinking: bool) -> None:
        """``sign`` gives the signature of the answer's thinking."""
        self._sign = sign
        self._tells_thinking = tells_thinking
        self._index = 0
        self._open = ""
        """The type of the block under way; empty between blocks."""
        self._space = ""
        self._call = -1
        self._arguments = ""

    def add(self, delta: Delta) -> bytes:
        """The events of a delta, which may be none."""
        out = b""
        if delta.reasoning:
            out += self._begin("thinking", {"thinking": "", "signature": ""})
            if self._tells_thinking:
                out += self._delta("thinking_delta", thinking=delta.reasoning)
        if delta.content:
            out += self._text(delta.content)
        for call in delta.calls:
            out += self._called(call)
        return out

    def close(self) -> bytes:
        """The events that end the block under way, if any."""
        if not self._open:
            return b""
        out = b""
        if self._open == "thinking":
            out = self._delta("signature_delta", signature=self._sign())
        elif self._open == "tool_use":
            out = self._delta("input_json_delta", partial_json=_partial_json(self._arguments))
        out += _event("content_block_stop", index=self._index)
        self._open, self._space = "", ""
        self._index += 1
        return out

    def _text(self, content: str) -> bytes:
        if self._open != "text":
            self._space += content
            if not self._space.strip():
                return b""
            content = self._space
        out = self._begin("text", {"text": ""})
        return out + self._delta("text_delta", text=content)

    def _called(self, call: CallDelta) -> bytes:
        out = b""
        if call.index != self._call:
            out = self.close() + self._begin("tool_use", {"id": call.id, "name": call.name, "input": {}})
            self._call, self._arguments = call.index, ""
        self._arguments += call.arguments
        return out

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        out = self.close()
        self._open, self._space = kind, ""
        return out + _event("content_block_start", index=self._index, content_block={"type": kind, **block})

    def _delta(self, kind: str, **change: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **change})


def _partial_json(arguments: str) -> str:
    """The arguments as the policy wrote them, where that is a JSON object."""
    given = tool_input(arguments)
    return json.dumps(given, ensure_ascii=False) if given == {INVALID_JSON: arguments} else arguments


async def message_events(
    events: AsyncIterator[Event],
    writer: EventWriter,
    start: Callable[[int], dict[str, Any]],
    end: Callable[[Completion], dict[str, Any]],
    error: Callable[[GatewayError], dict[str, Any]],
) -> AsyncIterator[bytes]:
    """The parts of a streamed answer.

    ``start`` gives the message before there is anything in it, from the number of its prompt's tokens; ``end`` what
    ``message_delta`` holds; and ``error`` what is written where the answer breaks off.
    """
    began, last = False, time.monotonic()
    try:
        async for event in events:
            if isinstance(event, Completion):
                out = b"" if began else _event("message_start", message=start(event.call.prompt_tokens))
                yield out + writer.close() + _event("message_delta", **end(event)) + _event("message_stop")
                return
            out = b"" if began else _event("message_start", message=start(event.prompt_tokens))
            began = True
            out += writer.add(event)
            if not out and time.monotonic() - last > _PING_S:
                out = _event("ping")
            if out:
                last = time.monotonic()
                yield out
    except GatewayError as failure:
        yield server_event(error(failure), "error")


def _event(kind: str, **fields: Any) -> bytes:
    return server_event({"type": kind, **fields}, kind)
