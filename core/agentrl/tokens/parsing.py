"""What a completion says, as an assistant message of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentrl.errors import encodable
from agentrl.tokens.template import Message
from agentrl.tokens.tool_calls import read_call
from agentrl.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from renderers import ParsedResponse, ParsedToolCall

__all__ = ["assistant_message"]


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
        function = read_call(attempt.raw, attempt.name, attempt.arguments) if tools_offered else None
        if function is None:
            content = f"{content}\n{_raw(attempt, ids, vocabulary)}" if content else _raw(attempt, ids, vocabulary)
        else:
            call_id = encodable(attempt.id) if attempt.id else f"{call_ids}{len(calls)}"
            calls.append({"id": call_id, "type": "function", "function": function})
    message: Message = {"role": "assistant", "content": content if content or not calls else None}
    if parsed.reasoning_content:
        message["reasoning_content"] = parsed.reasoning_content
    if calls:
        message["tool_calls"] = calls
    return message


def _raw(attempt: ParsedToolCall, ids: Sequence[int], vocabulary: Vocabulary) -> str:
    if attempt.token_span is None:
        return attempt.raw
    start, end = attempt.token_span
    return vocabulary.decode(ids[start:end])
