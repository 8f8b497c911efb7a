"""The messages of a request, read into the plain shape of the chat completions API.

SDKs send back what they made of an answer: their own notes beside it, thinking under several names, fields that are
null. What tells the model nothing is removed, other forms of the same thing become one, and what would be lost is
refused with the path of the message.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from itertools import takewhile
from operator import is_
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.dialects.refusals import text, wrong
from agentrl.gateway.dialects.tools import custom_call

__all__ = ["Message", "read_messages", "says_nothing"]

Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = ("user", "assistant", "system", "developer")
_MESSAGE_FIELDS = {
    "assistant": frozenset({"role", "content", "name", "tool_calls", "reasoning_content"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
_ANY_MESSAGE_FIELDS = frozenset({"role", "content", "name"})
_NOTES = frozenset({"provider_specific_fields", "parsed", "annotations", "cache_control", "id", "status"})
"""What SDKs add to a message about its origin, parsing or caching; none of it is for the model to read."""
_LAST = "messages"
"""Under which key the messages of the last request are remembered, as they were given and as they were read."""
_THINKING = ("reasoning_content", "reasoning", "thinking_blocks", "reasoning_details")
"""Names under which SDKs send back thinking. The first that holds any is taken; the others hold the same."""
_FIXES = {
    "function_call": "send tool_calls",
    "audio": "the policy reads text only",
    "images": "the policy reads text only",
}


def read_messages(value: Any, memory: MutableMapping[str, Any] | None = None) -> list[Message]:
    """The ``messages`` of a request, plain. Raises ``GatewayError`` (400), naming the message at fault.

    ``memory`` is what the dialect keeps in the session: objects that begin its last request too were read then.
    """
    if not isinstance(value, list) or not value:
        raise wrong("messages", f"is not a list of at least one message: {shown(value, 80)}")
    given, read = ((), ()) if memory is None else memory.get(_LAST, ((), ()))
    known = sum(takewhile(bool, map(is_, value, given)))
    messages = [
        *read[:known],
        *(
            message if _is_text(message) else _message(message, f"messages[{index}]", memory or {})
            for index, message in enumerate(value[known:], known)
        ),
    ]
    if memory is not None:
        memory[_LAST] = value, messages
    return messages


def _is_text(message: Any) -> bool:
    """Whether a message is a role and a text, as most are, in which there is nothing to check or to change."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in _SPEAKERS
    )


def _message(value: Any, where: str, memory: Mapping[str, Any]) -> Message:
    if not isinstance(value, dict):
        raise wrong(where, f"is not an object: {shown(value, 80)}")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        fix = "send the role tool" if role == "function" else "one of " + ", ".join(_ROLES)
        raise wrong(f"{where}.role", f"is {shown(role, 80)}", fix=fix)
    message: Message = {name: given for name, given in value.items() if given is not None}
    if role == "assistant":
        _assistant(message, where, memory)
    if unread := message.keys() - _MESSAGE_FIELDS.get(role, _ANY_MESSAGE_FIELDS):
        _leave_out(role, message, unread, where)
    text(message, "name", where)
    text(message, "tool_call_id", where)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    elif content is None:
        if role != "assistant":
            raise wrong(f"{where}.content", "is missing")
    elif not isinstance(content, str):
        raise wrong(f"{where}.content", f"is neither a text nor a list of parts: {shown(content, 80)}")
    return message


def _leave_out(role: str, message: Message, unread: set[str], where: str) -> None:
    """Remove fields in which an SDK tells the model nothing, and refuse all others."""
    for name in sorted(unread):
        if name not in _NOTES and not says_nothing(message[name]):
            fix = _FIXES.get(name, "drop it")
            raise wrong(f"{where}.{name}", f"cannot be used in a {role} message", fix=fix, code="unknown_parameter")
        del message[name]


def says_nothing(value: Any) -> bool:
    """Whether a value is empty, or holds nothing but empty ones."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict | list):
            left += item.values() if isinstance(item, dict) else item
        elif item is not None and item != "":
            return False
    return True


def _part(part: Any, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return {"type": "text", "text": part[kind]}
    raise wrong(
        where,
        f"is not text but {shown(kind or part, 80)}",
        fix="the policy reads text only",
        code="unsupported_content",
    )


def _assistant(message: Message, where: str, memory: Mapping[str, Any]) -> None:
    """Read what only turns of the assistant have: thinking, refusals and tool calls."""
    _read_thinking(message, where)
    if refused := text(message, "refusal", where):
        said = message.get("content")
        parts = said if isinstance(said, list) else [{"type": "text", "text": said}] if said else []
        message["content"] = [*parts, {"type": "refusal", "refusal": refused}] if parts else refused
    message.pop("refusal", None)
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise wrong(f"{where}.tool_calls", f"is not a list: {shown(calls, 80)}")
    message["tool_calls"] = [
        _tool_call(call, f"{where}.tool_calls[{index}]", memory) for index, call in enumerate(calls)
    ]
    if not calls:
        del message["tool_calls"]


def _read_thinking(message: Message, where: str) -> None:
    """Keep a turn's thinking as ``reasoning_content``, whatever name it came under."""
    thinking = ""
    for name in _THINKING:
        value = message.get(name)
        if says_nothing(value):
            message.pop(name, None)
        elif thinking:
            del message[name]
        elif isinstance(value, str):
            thinking = value
            del message[name]
        elif isinstance(value, list) and (thinking := "".join(map(_thought, value))):
            del message[name]
        elif name in ("reasoning_content", "reasoning"):
            raise wrong(f"{where}.{name}", f"is not a text: {shown(value, 80)}")
    if thinking:
        message["reasoning_content"] = thinking


def _thought(block: Any) -> str:
    """The text of one block of thinking; empty for one that is encrypted, or no block at all."""
    if not isinstance(block, dict):
        return ""
    return next((block[name] for name in ("thinking", "text", "summary") if isinstance(block.get(name), str)), "")


def _tool_call(call: Any, where: str, memory: Mapping[str, Any]) -> Message:
    """A tool call without what SDKs add to it, such as its index or its parsed arguments."""
    if not isinstance(call, dict):
        raise wrong(where, f"is not an object: {shown(call, 80)}")
    call = custom_call(call, where, memory)
    function = call.get("function")
    if not isinstance(function, Mapping) or call.get("type") not in (None, "function"):
        raise wrong(where, "is not a call of a function")
    for name in ("name", "arguments"):
        if not isinstance(function.get(name), str):
            raise wrong(f"{where}.function.{name}", f"is not a text: {shown(function.get(name), 80)}")
    said = {"type": "function", "function": {name: function[name] for name in ("name", "arguments")}}
    call_id = text(call, "id", where)
    return said if call_id is None else {"id": call_id, **said}
