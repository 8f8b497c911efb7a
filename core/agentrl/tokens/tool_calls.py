"""Tool calls in JSON: their names and arguments, in the policy's own spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from agentrl.errors import encodable

__all__ = ["Function", "read_call"]

Function = dict[str, str]
"""Name and arguments of a call, the arguments as text."""

_NAME = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)+)"', re.DOTALL)
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_NONE = "{}"


def read_call(raw: str, name: object = None, arguments: object = None) -> Function | None:
    """The call that the policy wrote as ``raw``, in which a parser found ``name`` and ``arguments`` or gave up.

    ``None`` where no name can be read. Arguments, or ``parameters``, keep every character, so that an agent sends
    back what the policy wrote: escapes that no text can hold, digits, white space. Where there are none, or ``null``,
    they are an empty object.
    """
    if not isinstance(name, str) or not name or arguments is None:
        return _whole(raw) if _is_json(raw) else _broken(raw)
    if arguments == {} and _is_json(raw) and (whole := _whole(raw)) is not None:
        return whole  # Most parsers look for ``arguments`` only; Llama writes ``parameters``.
    return {"name": encodable(name), "arguments": _as_written(raw, arguments)}


def _as_written(raw: str, arguments: object) -> str:
    if isinstance(arguments, str):
        return encodable(arguments)
    wanted = repr(arguments)
    for text in _values(raw):
        try:
            if repr(json.loads(text)) == wanted:
                return encodable(text)
        except (ValueError, RecursionError):
            continue
    return encodable(json.dumps(arguments, ensure_ascii=False))


def _values(raw: str) -> Iterator[str]:
    """Where a call's arguments may stand: a member of the call, all of it, or what it fences off."""
    if _is_json(raw):
        members = _members(raw)
        yield from (members[key] for key in ("arguments", "parameters") if key in members)
        yield raw.strip()
    elif fenced := _FENCED.search(raw):
        yield fenced.group(1)


def _whole(raw: str) -> Function | None:
    members = _members(raw)
    name = json.loads(members.get("name", _NONE))
    if not isinstance(name, str) or not name:
        return None
    text = members.get("arguments", members.get("parameters", _NONE))
    arguments = json.loads(text) if text.startswith('"') else text
    return {"name": encodable(name), "arguments": _NONE if text == "null" else encodable(arguments)}


def _broken(raw: str) -> Function | None:
    """A call in JSON that does not parse: its name, and the arguments as the policy wrote them."""
    name, arguments = _NAME.search(raw), _ARGUMENTS.search(raw)
    if name is None or raw.lstrip().startswith("<"):
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
    """What JSON says of each key, as it is written there; nothing for JSON that is no object."""
    value, at = json.loads(raw), _after_space(raw, 0)
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


def _unescaped(name: str) -> str:
    try:
        return encodable(json.loads(f'"{name}"', strict=False))
    except ValueError:
        return name


def _closes_outside(text: str) -> bool:
    """Whether the last brace of ``text`` is that of the object around the arguments."""
    return text.endswith("}") and text.count("}") > text.count("{")
