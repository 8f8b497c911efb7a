"""The form in which a chat template takes what the API leaves open: told by what reaches the prompt."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from agentrl.errors import GatewayError

__all__ = ["Form", "fitting_form"]

Message = dict[str, Any]
Text = Callable[[Sequence[Message]], str]
"""Renders messages to text. Raises ``GatewayError`` where the template refuses them."""

Arguments = Literal["object", "text"]

_ARGUMENTS: tuple[Arguments, ...] = ("object", "text")
_SILENCES: tuple[Literal[""] | None, ...] = ("", None)
_SHORT_ID = 9


@dataclass(frozen=True, slots=True)
class Form:
    """How messages are put to a template. The default is what most of them take."""

    arguments: Arguments = "object"
    """Arguments of tool calls: parsed, or as JSON text for templates that write them as they are."""
    silence: Literal[""] | None = ""
    """The content of a turn that only calls tools; some templates ask whether it is none."""
    thinking: str = "reasoning_content"
    """The key of a turn's thinking."""
    short_ids: bool = False
    """Whether ids of tool calls are nine letters and digits."""
    parts: bool = False
    """Whether a content is a list of parts, which is all that some templates of models that see images write."""

    def put(self, message: Mapping[str, Any]) -> Message:
        """The message as the template takes it, its arguments parsed where they can be."""
        role = "system" if message["role"] == "developer" else message["role"]
        given = {key: value for key, value in message.items() if value is not None}
        put: Message = {**given, "role": role, "content": text_of(message)}
        if calls := message.get("tool_calls"):
            put["tool_calls"] = [self._call(call) for call in calls]
            put["content"] = put["content"] or self.silence
        else:
            put.pop("tool_calls", None)
        if self.thinking != "reasoning_content" and put.get("reasoning_content"):
            put[self.thinking] = put.pop("reasoning_content")
        if self.short_ids and isinstance(message.get("tool_call_id"), str):
            put["tool_call_id"] = _shortened(message["tool_call_id"])
        if self.parts and put["content"]:
            put["content"] = [{"type": "text", "text": put["content"]}]
        return put

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        put = {**call, "function": self._function(call["function"])}
        if self.short_ids and isinstance(call.get("id"), str):
            put["id"] = _shortened(call["id"])
        return put

    def _function(self, function: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.arguments == "text":
            return function
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return function
        return {**function, "arguments": arguments} if isinstance(arguments, dict) else function


def text_of(message: Mapping[str, Any]) -> str:
    """A message's content as one text; text parts are joined."""
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def _shortened(call_id: str) -> str:
    """Nine letters and digits that stand for ``call_id``; itself where it is such."""
    if len(call_id) == _SHORT_ID and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:_SHORT_ID]


_NAME, _KEY, _VALUE, _RESULT, _THOUGHT = (
    "probe_name_q1",
    "probe_key_q2",
    "probe value q3",
    "probe result q4",
    "q5 probe",
)
_ASK: Message = {"role": "user", "content": "What is it?"}


def fitting_form(text: Text) -> Form:
    """The first form in which the most of a conversation, a call and its result reaches the text of a template."""
    parts = not _asks(text, Form()) and _asks(text, Form(parts=True))
    orders = itertools.product((False, True), _ARGUMENTS, _SILENCES)
    forms = [
        Form(arguments=arguments, silence=silence, short_ids=short, parts=parts) for short, arguments, silence in orders
    ]
    best = max(forms, key=lambda form: _reached(text, form))
    if _thinks(text, "thinking") and not _thinks(text, "reasoning_content"):
        return replace(best, thinking="thinking")
    return best


def _asks(text: Text, form: Form) -> bool:
    """Whether what a user says reaches the text."""
    try:
        return str(_ASK["content"]) in text([form.put(_ASK)])
    except GatewayError:
        return False


def _reached(text: Text, form: Form) -> tuple[int, bool]:
    """How much of a call and its result is in the text, and whether the arguments are written as JSON is."""
    arguments = json.dumps({_KEY: _VALUE})
    function = {"name": _NAME, "arguments": arguments}
    call = {"id": "call_0", "type": "function", "function": function}
    turn: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_0", "name": _NAME, "content": _RESULT}
    try:
        written = text([form.put(message) for message in (_ASK, turn, result)])
    except GatewayError:
        return -1, False
    printed = f"'{_KEY}'" in written or f'\\"{_KEY}' in written
    return sum(part in written for part in (_NAME, _KEY, _VALUE, _RESULT)), not printed


def _thinks(text: Text, key: str) -> bool:
    try:
        return _THOUGHT in text([_ASK, {"role": "assistant", "content": "It is.", key: _THOUGHT}])
    except GatewayError:
        return False
