"""Tool calls read by the tokenizer's own response template, from which transformers parses completions."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from renderers import ParsedResponse, ParsedToolCall, ToolSpec

    from agentrl.tokens.renderer import Reader
    from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["ResponseTemplate", "response_template"]

_log = logging.getLogger(__name__)

_HEADER = 48
"""How many ids at the end of a prompt hold the header of a turn, after which a response template begins to read."""
_DECODER = json.JSONDecoder()


def response_template(vocabulary: Vocabulary, reader: Reader) -> ResponseTemplate | None:
    """Return the reader by the tokenizer's response template, or ``None`` where it has none.

    ``reader`` reads completions without calls, and those that do not follow the response template.
    """
    if getattr(vocabulary, "response_template", None) is None:
        return None
    return ResponseTemplate(vocabulary, reader)


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """Reads completions by the response template of a tokenizer that has one."""

    vocabulary: Vocabulary
    reader: Reader

    def parse_response(
        self, token_ids: list[int], *, tools: list[ToolSpec] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        """Return the parsed completion. Where no ``tools`` are offered, calls stay text."""
        from renderers import ParsedResponse

        text = self.vocabulary.decode(token_ids)
        message = self._message(text, tools, prompt_ids or []) if tools else {}
        calls = _parsed_calls(message.get("tool_calls"), text)
        if not calls:
            return self.reader.parse_response(token_ids, tools=tools, prompt_ids=prompt_ids)
        content, thinking = message.get("content"), message.get("reasoning_content") or message.get("thinking")
        return ParsedResponse(
            content=content if isinstance(content, str) else "",
            reasoning_content=thinking if isinstance(thinking, str) else None,
            tool_calls=calls,
        )

    def _message(self, text: str, tools: list[ToolSpec] | None, prompt_ids: list[int]) -> Mapping[str, Any]:
        prefix = self.vocabulary.decode(prompt_ids[-_HEADER:])
        try:
            message = self.vocabulary.parse_response(text, prefix=prefix, tools=tools)
        except (
            Exception
        ) as error:  # The boundary to transformers: a policy may write what its template does not expect.
            _log.debug("a completion does not follow the response template: %s", error)
            return {}
        return message if isinstance(message, dict) else {}


def _parsed_calls(calls: object, text: str) -> list[ParsedToolCall]:
    """The calls of a parsed message, each with its arguments as they stand in ``text``."""
    from renderers import ParsedToolCall

    found, at = list[ParsedToolCall](), 0
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict):
            continue
        name, arguments, call_id = function.get("name"), function.get("arguments", {}), call.get("id")
        raw, at = _as_written(arguments, text, at)
        found.append(
            ParsedToolCall(
                raw=raw,
                name=name if isinstance(name, str) else None,
                arguments=arguments,
                id=call_id if isinstance(call_id, str) else None,
            )
        )
    return found


def _as_written(arguments: object, text: str, at: int) -> tuple[str, int]:
    """The JSON of ``arguments`` in ``text`` after ``at``, and where it ends; JSON of ours where there is none."""
    wanted, start = repr(arguments), text.find("{", at)
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            value, end = None, start
        if repr(value) == wanted:
            return text[start:end], end
        start = text.find("{", start + 1)
    return json.dumps(arguments, ensure_ascii=False), at
