"""What a completion says, as an assistant message of the OpenAI API."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentrl.tokens.template import Message
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ParsedToolCall

__all__ = ["assistant_message"]

_NAME = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)+)"')
_ARGUMENTS = re.compile(r'"arguments"\s*:\s*')


def assistant_message(
    parsed: ParsedResponse, ids: Sequence[int], vocabulary: Vocabulary, *, tools_offered: bool, call_ids: str
) -> Message:
    """The message of ``parsed``, whose tool calls are numbered ``call_ids``0, 1, 2 …

    A tool call that does not parse is the policy's mistake, and the agent must be able to see it: where
    its name can be read it is a call with the arguments as they were written, else it stays text. Where
    no tools were offered every call stays text.
    """
    calls: list[dict[str, Any]] = []
    content = parsed.content
    for attempt in parsed.tool_calls:
        function = _function(attempt) if tools_offered else None
        if function is None:
            content = f"{content}\n{_raw(attempt, ids, vocabulary)}" if content else _raw(attempt, ids, vocabulary)
        else:
            calls.append({"id": attempt.id or f"{call_ids}{len(calls)}", "type": "function", "function": function})
    message: Message = {"role": "assistant", "content": content if content or not calls else None}
    if parsed.reasoning_content:
        message["reasoning_content"] = parsed.reasoning_content
    if calls:
        message["tool_calls"] = calls
    return message


def _function(attempt: ParsedToolCall) -> dict[str, str] | None:
    """Name and arguments of a call, the arguments as JSON text; ``None`` where no name can be read."""
    if isinstance(attempt.name, str) and attempt.name and attempt.arguments is not None:
        arguments = attempt.arguments
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {"name": attempt.name, "arguments": text}
    try:
        value = json.loads(attempt.raw)
    except (ValueError, RecursionError):
        return _broken(attempt.raw)
    return _whole(value)


def _whole(value: object) -> dict[str, str] | None:
    """A call whose JSON is complete though the block around it is not."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    return {"name": value["name"], "arguments": json.dumps(value.get("arguments", {}), ensure_ascii=False)}


def _broken(raw: str) -> dict[str, str] | None:
    """A call in JSON that does not parse: its name, and the arguments as the policy wrote them."""
    name, arguments = _NAME.search(raw), _ARGUMENTS.search(raw)
    if name is None:
        return None
    text = raw[arguments.end() :].rstrip() if arguments else ""
    return {"name": name.group(1), "arguments": text.removesuffix("}") if _closes_outside(text) else text}


def _closes_outside(text: str) -> bool:
    """Whether the last brace of ``text`` is that of the object around the arguments."""
    return text.endswith("}") and text.count("}") > text.count("{")


def _raw(attempt: ParsedToolCall, ids: Sequence[int], vocabulary: Vocabulary) -> str:
    if attempt.token_span is None:
        return attempt.raw
    start, end = attempt.token_span
    return vocabulary.decode(ids[start:end])
