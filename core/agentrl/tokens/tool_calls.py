"""Tool calls written in JSON: their names and arguments, in the policy's own spelling.

``read_call`` reads one call from its text. ``JsonCalls`` finds calls in a completion, between marks that are learned
from what a chat template writes. It serves vocabularies in which the marks are not tokens, and model families whose
calls no parser of the ``renderers`` package reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.errors import encodable

if TYPE_CHECKING:
    from renderers import ParsedResponse, ParsedToolCall, ToolSpec
    from renderers import Renderer as Library

    from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["Function", "JsonCalls", "calls_at", "learned", "read_call", "unescaped"]

Function = dict[str, str]
"""The name and the arguments of a call; the arguments are text, as in the OpenAI API."""

_NAME = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)+)"', re.DOTALL)
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_EMPTY = "{}"


def read_call(raw: str, name: object = None, arguments: object = None) -> Function | None:
    """Return the call that the policy wrote as ``raw``, or ``None`` where no name can be read.

    ``name`` and ``arguments`` are what a parser found in it, ``None`` where it found nothing. The key of the
    arguments may be ``arguments`` or ``parameters``. They keep every character that the policy wrote (escapes,
    digits, white space), because an agent sends them back. Missing or ``null`` arguments are an empty object.
    """
    try:
        return _read(raw, name, arguments)
    except RecursionError:
        return _broken(raw)


def _read(raw: str, name: object, arguments: object) -> Function | None:
    if not isinstance(name, str) or not name or arguments is None:
        return _whole(raw) if _is_json(raw) else _broken(raw)
    if _is_json(raw) and _holds(raw, name, arguments):
        return _whole(raw)
    return {"name": encodable(name), "arguments": _as_written(raw, arguments)}


def _holds(raw: str, name: str, arguments: object) -> bool:
    """Whether the JSON ``raw`` is a whole call of ``name``, and not its arguments alone."""
    value = json.loads(raw)
    return isinstance(value, dict) and value.get("name") == name and repr(value) != repr(arguments)


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
    """The texts that may be the arguments of a call: a member of the call, all of it, or a fenced block in it."""
    if _is_json(raw):
        members = _members(raw)
        yield from (members[key] for key in ("arguments", "parameters") if key in members)
        yield raw.strip()
    elif fenced := _FENCED.search(raw):
        yield fenced.group(1)


def _whole(raw: str) -> Function | None:
    members = _members(raw)
    name = json.loads(members.get("name", _EMPTY))
    if not isinstance(name, str) or not name:
        return None
    text = next((text for key, text in members.items() if key in ("arguments", "parameters")), _EMPTY)
    arguments = json.loads(text) if text.startswith('"') else text
    return {"name": encodable(name), "arguments": _EMPTY if text == "null" else encodable(arguments)}


def _broken(raw: str) -> Function | None:
    """A call whose JSON does not parse: its name, and the arguments as the policy wrote them."""
    name, arguments = _NAME.search(raw), _ARGUMENTS.search(raw)
    if name is None or raw.lstrip().startswith("<"):
        return None
    text = raw[arguments.end() :].rstrip() if arguments else ""
    text = text.removesuffix("}") if _has_outer_brace(text) else text
    return {"name": unescaped(name.group(1)), "arguments": _EMPTY if text.rstrip() == "null" else text}


def _is_json(raw: str) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _members(raw: str) -> Mapping[str, str]:
    """The text of each member of a JSON object, by key; empty for other JSON. ``raw`` is known to parse.

    Of members with the same key it is the first, because a client that reads a stream has it already.
    """
    value, at = json.loads(raw), _after_space(raw, 0)
    members: dict[str, str] = {}
    while value and isinstance(value, dict) and raw[at] != "}":
        # ``at`` is at the brace or the comma before a member.
        key, at = _DECODER.raw_decode(raw, _after_space(raw, at + 1))
        start = _after_space(raw, _after_space(raw, at) + 1)
        _, at = _DECODER.raw_decode(raw, start)
        members.setdefault(key, raw[start:at])
        at = _after_space(raw, at)
    return members


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def unescaped(name: str) -> str:
    """Return a name that is spelled as in a JSON string."""
    try:
        return encodable(json.loads(f'"{name}"', strict=False))
    except ValueError:
        return name


def _has_outer_brace(text: str) -> bool:
    """Whether the last brace of ``text`` closes the object around the arguments."""
    return text.endswith("}") and text.count("}") > text.count("{")


def learned(written: str, name: str, library: Library, vocabulary: Vocabulary) -> JsonCalls | None:
    """Return the reader of calls that are written like ``written``, or ``None`` where that is not JSON.

    ``written`` is a turn that consists of one call of the tool ``name``. ``library`` reads what is not a call.
    """
    for start, char in enumerate(written):
        found = calls_at(written, start) if char in "[{" else None
        if found is not None and [call["name"] for call in map(json.loads, found[0])] == [name]:
            opener, closer = written[:start].strip(), written[found[1] :].strip()
            return JsonCalls(opener, closer, library, vocabulary, has_ids="id" in json.loads(found[0][0]))
    return None


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Reads the calls between ``opener`` and ``closer``; without an opener, a turn that consists of one call."""

    opener: str
    closer: str
    library: Library
    vocabulary: Vocabulary
    has_ids: bool = False
    """Whether calls hold ids of their own, under the key ``id``."""

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        """Return the parsed completion. Where no ``tools`` are offered, calls stay text."""
        parsed = self.library.parse_response(token_ids, tools=tools, prompt_ids=prompt_ids)
        if not tools or parsed.reasoning_complete is False:
            return parsed
        ends = set(self.library.get_stop_token_ids())
        last = next((n for n, token in enumerate(token_ids) if token in ends), len(token_ids))
        text = self.vocabulary.decode(token_ids[:last])
        if parsed.reasoning_content is not None:
            text = text.partition("</think>")[2]
        content, calls = self._between_marks(text) if self.opener else self._bare(text)
        if calls:
            parsed.content, parsed.tool_calls = content, [self.attempt(raw) for raw in calls]
        return parsed

    def _bare(self, text: str) -> tuple[str, list[str]]:
        found = calls_at(text, len(text) - len(text.lstrip()))
        if found is None or text[found[1] :].strip() not in ("", self.closer):
            return text, []
        return "", found[0]

    def _between_marks(self, text: str) -> tuple[str, list[str]]:
        """The text beside the calls, and the text of each call; a broken call extends to the closer or the end."""
        content, calls, rest = "", list[str](), text
        while rest:
            before, mark, rest = rest.partition(self.opener)
            content += before if mark or before.strip() else ""
            if not mark:
                break
            found = calls_at(rest, len(rest) - len(rest.lstrip()))
            if found is None:
                block, _, rest = rest.partition(self.closer) if self.closer else (rest, "", "")
                calls.append(block.strip())
            else:
                calls += found[0]
                rest = rest[found[1] :].lstrip().removeprefix(self.closer)
        return content, calls

    def attempt(self, raw: str) -> ParsedToolCall:
        """Return one call, whether its JSON is valid or not, as the parsers of the ``renderers`` package do."""
        from renderers import ParsedToolCall, ToolCallParseStatus

        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return ParsedToolCall(raw=raw, status=ToolCallParseStatus.INVALID_JSON)
        if not _is_call(value):
            return ParsedToolCall(raw=raw, status=ToolCallParseStatus.MISSING_NAME)
        arguments, call_id = value.get("arguments", value.get("parameters", {})), value.get("id")
        own = call_id if self.has_ids and isinstance(call_id, str) else None
        return ParsedToolCall(raw=raw, name=value["name"], arguments=arguments, id=own)


def calls_at(text: str, start: int) -> tuple[list[str], int] | None:
    """Return the text of each call in the JSON value at ``start``, one object or a list of them, and where it ends.

    ``None`` is any other text.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    if _is_call(value):
        return [text[start:end]], end
    if not isinstance(value, list) or not value or not all(map(_is_call, value)):
        return None
    calls, at = [], start
    for _ in value:
        at = text.index("{", at)
        _, after = _DECODER.raw_decode(text, at)
        calls.append(text[at:after])
        at = after
    return calls, end


def _is_call(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and bool(value["name"])
