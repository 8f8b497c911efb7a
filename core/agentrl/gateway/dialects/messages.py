"""Messages and tools of the chat completions API, checked and made plain."""

from __future__ import annotations

from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.tokens.template import Message

__all__ = ["read_messages", "read_tools"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_FIELDS = {
    "assistant": frozenset({"role", "content", "name", "tool_calls", "reasoning_content", "reasoning"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
_ANY_FIELDS = frozenset({"role", "content", "name"})
_NOTES = frozenset({"provider_specific_fields", "parsed", "annotations", "cache_control"})
"""What SDKs note beside a message: about where it came from, how it was read or kept, never for the model to read."""
_THINKING_AGAIN = frozenset({"thinking_blocks", "reasoning_details"})
"""Other forms of what ``reasoning_content`` says, beside it."""


def read_messages(value: Any) -> list[Message]:
    """The ``messages`` of a request. Raises ``GatewayError`` (400), naming the message at fault."""
    if not isinstance(value, list) or not value:
        raise _wrong("messages", f"is not a list of at least one message: {shown(value, 80)}")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise _wrong(where, f"is not an object: {shown(value, 80)}")
    role = value.get("role")
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"is {role!r}", fix="one of " + ", ".join(_ROLES))
    message: Message = {name: given for name, given in value.items() if given is not None}
    if unknown := message.keys() - _FIELDS.get(role, _ANY_FIELDS):
        _unknown(role, message, unknown, where)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    elif content is None:
        if role != "assistant":
            raise _wrong(f"{where}.content", "is missing")
    elif not isinstance(content, str):
        raise _wrong(f"{where}.content", f"is neither a text nor a list of parts: {shown(content, 80)}")
    if role == "assistant":
        _assistant(message, where)
    return message


def _unknown(role: str, message: Message, unknown: set[str], where: str) -> None:
    """Refuse fields that would be dropped, except where an SDK sends back what says nothing to the model."""
    again = _THINKING_AGAIN if message.get("reasoning_content") or message.get("reasoning") else frozenset()
    for name in sorted(unknown):
        if name in _NOTES or name in again or _says_nothing(message[name]):
            del message[name]
        else:
            raise _wrong(
                f"{where}.{name}", f"cannot be used in a {role} message", fix="drop it", code="unknown_parameter"
            )


def _says_nothing(value: Any) -> bool:
    """Whether a value is empty, or holds nothing but empty ones."""
    if isinstance(value, dict):
        return all(map(_says_nothing, value.values()))
    return all(map(_says_nothing, value)) if isinstance(value, list) else value in (None, "")


def _part(part: Any, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return {"type": "text", "text": part[kind]}
    raise _wrong(
        where,
        f"is not text but {shown(kind or part, 80)}",
        fix="the policy reads text only",
        code="unsupported_content",
    )


def _assistant(message: Message, where: str) -> None:
    reasoning = message.pop("reasoning", None)
    if reasoning and "reasoning_content" not in message:
        message["reasoning_content"] = reasoning
    if not isinstance(message.get("reasoning_content", ""), str):
        raise _wrong(f"{where}.reasoning_content", "is not a text")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise _wrong(f"{where}.tool_calls", f"is not a list: {shown(calls, 80)}")
    message["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    if not calls:
        del message["tool_calls"]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """A tool call without what SDKs note beside it, such as its index or its arguments as they were parsed."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise _wrong(where, "is not a call of a function")
    for name in ("name", "arguments"):
        if not isinstance(function.get(name), str):
            raise _wrong(f"{where}.function.{name}", f"is not a text: {shown(function.get(name), 80)}")
    said = {"type": "function", "function": {name: function[name] for name in ("name", "arguments")}}
    return {"id": call["id"], **said} if call.get("id") is not None else said


def read_tools(value: Any) -> tuple[list[dict[str, Any]] | None, bool]:
    """The ``tools`` of a request, and whether any is strict.

    Raises ``GatewayError`` (400), naming the tool at fault.
    """
    if not value:
        return None, False
    if not isinstance(value, list):
        raise _wrong("tools", f"is not a list: {shown(value, 80)}")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise _wrong(f"tools[{index}]", "is not a function", fix="the policy calls functions only")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise _wrong(f"tools[{index}].function.name", "is missing")
        if not isinstance(function.get("strict"), bool | None):
            raise _wrong(
                f"tools[{index}].function.strict", f"is neither true nor false: {shown(function['strict'], 80)}"
            )
    return [_plain(tool) for tool in value], any(tool["function"].get("strict") for tool in value)


def _plain(tool: dict[str, Any]) -> dict[str, Any]:
    """``tool`` without ``strict`` where that is false, as it is unless said: templates would show it to the policy."""
    function = {name: given for name, given in tool["function"].items() if name != "strict" or given}
    return {**tool, "function": function}


def _wrong(where: str, what: str, *, fix: str | None = None, code: str = "invalid_value") -> GatewayError:
    return GatewayError(f"{where} {what}", param=where, code=code, fix=fix)
