"""The transcript of an episode: what was said in it, as a person reads it, whichever wire protocol it was said in.

A call repeats the conversation that it continues; a transcript tells of each call only what is new in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agentrl.gateway.contract import Call
from agentrl.gateway.dialects.sent import sent_messages
from agentrl.rollout.contract import Episode

__all__ = ["Exchange", "ToolCall", "Turn", "last_words", "transcript"]


class ToolCall(NamedTuple):
    """What a turn asks a tool to do."""

    name: str
    arguments: str
    """As the policy wrote them, most often JSON."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says."""

    role: str
    """``system``, ``developer``, ``user``, ``assistant`` or ``tool``."""
    text: str
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    tool: str | None = None
    """Of a tool's result: which tool it is of, where that is known."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A call to the model: what it adds to the conversation that it continues, and what it was answered."""

    call: Call
    follows: int | None
    """Index of the call whose conversation it continues; ``None`` where it begins one."""
    given: tuple[Turn, ...]
    answer: Turn


def transcript(episode: Episode) -> tuple[Exchange, ...]:
    """The calls of ``episode`` in their order, each with the turns that are new in it."""
    sent: dict[str, list[Mapping[str, Any]]] = {}
    places: dict[str, int] = {}
    names: dict[str, str] = {}
    exchanges = []
    for index, call in enumerate(episode.calls):
        messages = sent[call.id] = sent_messages(call.request)
        known = _known(call, messages, sent.get(call.parent or ""))
        given = [turn for message in messages[known:] for turn in _turns(message, names)]
        (answer, *_) = [*_turns({"role": "assistant", **call.message}, names), Turn("assistant", "")]
        follows = None if call.parent is None else places.get(call.parent)
        exchanges.append(Exchange(call, follows, tuple(given), answer))
        places[call.id] = index
    return tuple(exchanges)


def last_words(episode: Episode) -> str:
    """What the policy said last, in words or as calls of tools; empty where it said nothing."""
    for call in reversed(episode.calls):
        for turn in _turns({"role": "assistant", **call.message}, {}):
            said = turn.text.strip() or ", ".join(f"{each.name} {each.arguments}" for each in turn.calls)
            if said or turn.thinking:
                return said or turn.thinking.strip()
    return ""


def _known(call: Call, sent: Sequence[object], before: Sequence[object] | None) -> int:
    """How many of the messages that a call has sent were said before it: its parent's, and the parent's answer."""
    if before is None or call.request.get("previous_response_id") is not None or len(sent) <= len(before):
        return 0
    return len(before) + 1


def _turns(message: Mapping[str, Any], names: dict[str, str]) -> Iterator[Turn]:
    """What a message says; several turns where one message holds the results of several tools.

    ``names`` are the names of the tools by the ids of their calls, to which those of the message are added.
    """
    role, content = str(message.get("role", "user")), message.get("content")
    texts: list[str] = []
    thoughts = [str(message[key]) for key in ("reasoning_content", "reasoning") if message.get(key)][:1]
    calls: list[ToolCall] = []
    for called in message.get("tool_calls") or ():
        calls.append(_tool_call(called.get("function") or called.get("custom") or {}, called.get("id"), names))
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, Mapping):
            texts.append(_text(part))
            continue
        kind = part.get("type")
        if kind in ("thinking", "reasoning"):
            thoughts.append(str(part.get("thinking") or part.get("text") or ""))
        elif kind == "tool_use":
            calls.append(_tool_call(part, part.get("id"), names))
        elif kind == "tool_result":
            yield Turn("tool", _text(part.get("content")), tool=names.get(str(part.get("tool_use_id"))))
        else:
            texts.append(_text(part))
    text, tool = "".join(texts), names.get(str(message.get("tool_call_id"))) if role == "tool" else None
    if text or thoughts or calls or not isinstance(content, list):
        yield Turn(role, text, "\n".join(thoughts), tuple(calls), tool)


def _tool_call(function: Mapping[str, Any], id: object, names: dict[str, str]) -> ToolCall:
    name = str(function.get("name", "?"))
    arguments = function.get("arguments", function.get("input", ""))
    names[str(id)] = name
    return ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _text(content: Any) -> str:
    """A content, or a part of one, as text; what is no text is named by its type."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(_text, content))
    if isinstance(content, Mapping):
        text = content.get("text", content.get("refusal"))
        return text if isinstance(text, str) else f"[{content.get('type', 'something that is no text')}]"
    return json.dumps(content, ensure_ascii=False)
