"""Tool calls in JSON: their names and arguments, in the policy's own spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from agentrl.errors import encodable

__all__ = ["Function", "broken_call", "spelled", "whole_call"]

Function = dict[str, str]
"""Name and arguments of a call, the arguments as text."""

_NAME = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)+)"', re.DOTALL)
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_NONE = "{}"


def spelled(name: str, arguments: object) -> Function:
    """A call whose arguments are a value: a text is taken as it is, anything else is written as JSON."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": encodable(name), "arguments": encodable(text)}


def whole_call(raw: str) -> Function | None:
    """The call that ``raw`` is in JSON; ``None`` where it is none, or has no name.

    Arguments keep every character, so that an agent sends back what the policy wrote: escapes that no text can
    hold, digits, white space. Where there are none, or ``null``, they are an empty object.
    """
    try:
        members = _members(raw)
    except (ValueError, RecursionError):
        return None
    name = json.loads(members.get("name", _NONE))
    if not isinstance(name, str) or not name:
        return None
    return {"name": encodable(name), "arguments": _arguments(members)}


def broken_call(raw: str) -> Function | None:
    """The call that ``raw`` was to be, in JSON that does not parse; ``None`` where it shows no name."""
    name, arguments = _NAME.search(raw), _ARGUMENTS.search(raw)
    if name is None or raw.lstrip().startswith("<") or _is_json(raw):
        return None
    text = raw[arguments.end() :].rstrip() if arguments else ""
    text = text.removesuffix("}") if _closes_outside(text) else text
    return {"name": _unescaped(name.group(1)), "arguments": _NONE if text.rstrip() == "null" else text}


def _is_json(raw: str) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _members(raw: str) -> Mapping[str, str]:
    """What ``raw`` says of each key, as it is written there; nothing for JSON that is no object."""
    value, end = _DECODER.raw_decode(raw, at := _after_space(raw, 0))
    if _after_space(raw, end) != len(raw):
        raise ValueError("more than one value")
    members: dict[str, str] = {}
    while value and isinstance(value, dict) and raw[at] != "}":
        # ``at`` is at the brace or the comma before a member; all of it is known to parse.
        key, at = _DECODER.raw_decode(raw, _after_space(raw, at + 1))
        start = _after_space(raw, _after_space(raw, at) + 1)
        _, at = _DECODER.raw_decode(raw, start)
        members[key] = raw[start:at]
        at = _after_space(raw, at)
    return members


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _arguments(members: Mapping[str, str]) -> str:
    text = members.get("arguments", members.get("parameters", _NONE))
    if text.startswith('"'):
        return encodable(json.loads(text))
    return _NONE if text == "null" else text


def _unescaped(name: str) -> str:
    try:
        return encodable(json.loads(f'"{name}"', strict=False))
    except ValueError:
        return name


def _closes_outside(text: str) -> bool:
    """Whether the last brace of ``text`` is that of the object around the arguments."""
    return text.endswith("}") and text.count("}") > text.count("{")
