"""Tool calls in JSON between marks that are learned from a chat template, whatever tokens spell them.

For vocabularies in which the marks are no tokens of their own, and for families that no parser of the
``renderers`` package reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ParsedToolCall, ToolSpec
    from renderers import Renderer as Library

__all__ = ["JsonCalls", "learned"]

_DECODER = json.JSONDecoder()


def learned(written: str, name: str, library: Library, vocabulary: Vocabulary) -> JsonCalls | None:
    """The reader of calls that are written as ``written`` is, a turn of one call of ``name`` and nothing else.

    ``library`` reads what is not a call. ``None`` where the call is not in JSON.
    """
    for start, char in enumerate(written):
        found = _calls_at(written, start) if char in "[{" else None
        if found is not None and [call["name"] for call in map(json.loads, found[0])] == [name]:
            return JsonCalls(written[:start].strip(), written[found[1] :].strip(), library, vocabulary)
    return None


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Reads calls between ``opener`` and ``closer``; without an opener, a turn that is nothing but a call."""

    opener: str
    closer: str
    library: Library
    vocabulary: Vocabulary

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        """What a completion says: its calls only where ``tools`` are offered, else they are text."""
        parsed = self.library.parse_response(token_ids, tools=tools, prompt_ids=prompt_ids)
        if not tools or parsed.reasoning_complete is False:
            return parsed
        ends = set(self.library.get_stop_token_ids())
        last = next((n for n, token in enumerate(token_ids) if token in ends), len(token_ids))
        text = self.vocabulary.decode(token_ids[:last])
        if parsed.reasoning_content is not None:
            text = text.partition("</think>")[2]
        content, calls = self._marked(text) if self.opener else self._bare(text)
        if calls:
            parsed.content, parsed.tool_calls = content, [_call(raw) for raw in calls]
        return parsed

    def _bare(self, text: str) -> tuple[str, list[str]]:
        found = _calls_at(text, len(text) - len(text.lstrip()))
        if found is None or text[found[1] :].strip() not in ("", self.closer):
            return text, []
        return "", found[0]

    def _marked(self, text: str) -> tuple[str, list[str]]:
        """The text beside the calls, and the calls as they are written; one that is broken is all that follows."""
        content, calls, rest = "", list[str](), text
        while rest:
            before, mark, rest = rest.partition(self.opener)
            content += before if mark or before.strip() else ""
            if not mark:
                break
            found = _calls_at(rest, len(rest) - len(rest.lstrip()))
            if found is None:
                block, _, rest = rest.partition(self.closer) if self.closer else (rest, "", "")
                calls.append(block.strip())
            else:
                calls += found[0]
                rest = rest[found[1] :].lstrip().removeprefix(self.closer)
        return content, calls


def _call(raw: str) -> ParsedToolCall:
    from renderers import ParsedToolCall, ToolCallParseStatus

    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return ParsedToolCall(raw=raw, status=ToolCallParseStatus.INVALID_JSON)
    if not _is_call(value):
        return ParsedToolCall(raw=raw, status=ToolCallParseStatus.MISSING_NAME)
    call_id, arguments = value.get("id"), value.get("arguments", value.get("parameters", {}))
    return ParsedToolCall(
        raw=raw, name=value["name"], arguments=arguments, id=call_id if isinstance(call_id, str) else None
    )


def _calls_at(text: str, start: int) -> tuple[list[str], int] | None:
    """The calls that begin at ``start``, an object or a list of them, as they are written, and where they end."""
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
