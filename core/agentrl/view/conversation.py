"""An episode's calls as the conversation that a person reads.

Requests are recorded as they were sent, in one of three wire protocols, and each repeats most of the one before it.
Here they become one tree of messages, in which every message stands once; where an agent goes back and continues
otherwise, or samples several answers to one prompt, the tree forks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.gateway.contract import Call
from agentrl.gateway.dialects.sent import sent_messages

__all__ = ["Message", "Section", "ToolCall", "Turn", "conversation", "offered_tools", "sections"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as the policy wrote it."""

    name: str
    arguments: str
    """JSON, unless the policy wrote something else."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of any protocol."""

    role: str
    """``system``, ``user``, ``assistant``, ``tool``, or whatever else a protocol calls it."""
    text: str = ""
    name: str = ""
    """The name that the message carries; of a tool's result also the name of the tool, where that is known."""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    answers: str = ""
    """Of a tool's result, the id of the call that it answers."""
    other: str = ""
    """JSON of what the message holds beside texts, such as images."""

    @property
    def meaning(self) -> tuple[object, ...]:
        """Equal for messages that say the same, whatever a framework changed when it sent them again."""
        if self.role != "assistant":
            role = "system" if self.role == "developer" else self.role
            return role, self.text, self.other
        spoken = self.text.rpartition("</think>")[2].strip()
        return self.role, spoken, *((call.name, _json_meaning(call.arguments)) for call in self.calls)


@dataclass(eq=False, slots=True)
class Turn:
    """A message at its place in the tree."""

    message: Message
    call: int | None = None
    """The index of the call whose answer it is; ``None`` for what the agent sent."""
    first_sent: int | None = None
    """The index of the first call whose request holds it, for what the agent sent."""
    children: list[Turn] = field(default_factory=list)
    by_meaning: dict[tuple[object, ...], list[Turn]] = field(default_factory=dict)
    """The children by what they say."""

    def add(self, child: Turn, meaning: tuple[object, ...]) -> Turn:
        """Add ``child``, which means ``meaning``, after the others."""
        self.children.append(child)
        self.by_meaning.setdefault(meaning, []).append(child)
        return child


@dataclass(frozen=True, slots=True)
class Section:
    """Turns that follow each other without a fork."""

    turns: tuple[Turn, ...]
    after: int | None = None
    """The index of the section at whose end this one begins; ``None`` for the beginning of a conversation."""
    place: int = 1
    """Which of the branches there it is, from 1."""
    of: int = 1
    """How many branches there are."""


def conversation(calls: Sequence[Call]) -> list[Turn]:
    """The first turns of an episode's conversations, each with what follows it; most agents have one."""
    root = Turn(Message(""))
    by_id = {call.id: index for index, call in enumerate(calls)}
    paths: list[list[Turn]] = []
    reader = _Reader()
    for index, call in enumerate(calls):
        before = by_id.get(call.parent or "", index)
        known = paths[before] if before < index else []
        ancestors = {*known}
        path = [root, *known] if _refers(call.request) else [root]
        for message, meaning in reader.read(call.request):
            same = path[-1].by_meaning.get(meaning)
            if same:
                # Of several answers that read alike, the one that the request continues.
                path.append(next((turn for turn in same if turn in ancestors), same[0]))
            else:
                path.append(path[-1].add(Turn(message, first_sent=index), meaning))
        answer = _message(call.message, {})
        paths.append([*path[1:], path[-1].add(Turn(answer, call=index), answer.meaning)])
    return root.children


def _refers(request: Mapping[str, Any]) -> bool:
    """Whether a request only refers to the messages before it."""
    return any(request.get(name) is not None for name in ("previous_response_id", "conversation"))


def sections(turns: Sequence[Turn]) -> list[Section]:
    """``turns`` and all that follows them, cut at the forks; a branch is followed to its ends before the next one."""
    found: list[Section] = []
    open_ends = [(turn, None, place, len(turns)) for place, turn in enumerate(turns, 1)]
    left: list[tuple[Turn, int | None, int, int]] = [*reversed(open_ends)]
    while left:
        turn, after, place, of = left.pop()
        row = [turn]
        while len(row[-1].children) == 1:
            row.append(row[-1].children[0])
        index, forks = len(found), row[-1].children
        found.append(Section(tuple(row), after, place, of))
        left += [(child, index, number, len(forks)) for number, child in reversed([*enumerate(forks, 1)])]
    return found


def offered_tools(calls: Sequence[Call]) -> dict[str, Any]:
    """The definitions of the tools that the requests offered, by their names, each as it was sent first."""
    found: dict[str, Any] = {}
    for call in calls:
        tools = call.request.get("tools")
        for tool in tools if isinstance(tools, list) else ():
            if isinstance(tool, Mapping):
                function = tool.get("function")
                name = function.get("name") if isinstance(function, Mapping) else tool.get("name") or tool.get("type")
                found.setdefault(str(name), tool)
    return found


class _Reader:
    """Reads requests one after the other. What one repeats of those before it is the same object, and is read once."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Any, list[tuple[Message, tuple[object, ...]]]]] = {}
        """By the identity of a message as it was sent, that message, which is so kept alive, and what it says."""
        self._names: dict[str, str] = {}

    def read(self, request: Mapping[str, Any]) -> Iterator[tuple[Message, tuple[object, ...]]]:
        """The messages of a request, each with its meaning.

        Whatever cannot be read as messages is given as the JSON that it is.
        """
        sent = sent_messages(request)
        if not sent and (left := request.get("input", request.get("prompt"))) is not None:
            sent = [{"role": "request", "content": [left]}]
        for each in sent:
            known = self._read.get(id(each))
            if known is None:
                messages = [(message, message.meaning) for message in _messages(each, self._names)]
                known = self._read[id(each)] = each, messages
            yield from known[1]


def _messages(value: Any, names: dict[str, str]) -> Iterator[Message]:
    """A message as it was sent; one of the Messages API may hold results of tools, each of which becomes its own.

    ``names`` are the names of the tools that were called, by the ids of the calls, and are added to.
    """
    if not isinstance(value, Mapping):
        yield Message("request", other=_dumped(value))
        return
    content = value.get("content")
    rest = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type") == "tool_result":
            text, other = _content(part.get("content"))
            answered = str(part.get("tool_use_id") or "")
            yield Message("tool", text, names.get(answered, ""), answers=answered, other=_listed(other))
        else:
            rest.append(part)
    if isinstance(content, list):
        if rest or not content:
            yield _message({**value, "content": rest}, names)
    else:
        yield _message(value, names)


def _message(value: Mapping[str, Any], names: dict[str, str]) -> Message:
    content = value.get("content")
    text, other = _content(content)
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    calls = [*_tool_calls(value.get("tool_calls")), *_tool_uses(parts)]
    names.update({call.id: call.name for call in calls if call.id})
    answered = str(value.get("tool_call_id") or "")
    thinking = [_thinking(value), *(str(p.get("thinking") or "") for p in parts if p.get("type") == "thinking")]
    if isinstance(refusal := value.get("refusal"), str) and refusal:
        text = f"{text}\n{refusal}" if text else refusal
    return Message(
        role=str(value.get("role") or "assistant"),
        text=text,
        name=str(value.get("name") or names.get(answered, "")),
        thinking="\n\n".join(filter(None, thinking)),
        calls=tuple(calls),
        answers=answered,
        other=_listed(other),
    )


def _content(content: Any) -> tuple[str, list[Any]]:
    """The text of a content, and the parts of it that are neither text nor shown elsewhere."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        return "", [content]
    texts, other = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        said = next((part[k] for k in ("text", "refusal") if isinstance(part.get(k), str)), None) if kind else None
        if said is not None:
            texts.append(said)
        elif isinstance(part, str):
            texts.append(part)
        elif kind not in ("thinking", "tool_use"):
            other.append(part)
    return "".join(texts), other


def _thinking(value: Mapping[str, Any]) -> str:
    for name in ("reasoning_content", "reasoning"):
        if isinstance(given := value.get(name), str) and given:
            return given
    return ""


def _tool_calls(calls: Any) -> Iterator[ToolCall]:
    for call in calls if isinstance(calls, list) else ():
        if not isinstance(call, Mapping):
            yield ToolCall("", _dumped(call))
            continue
        said = next((call[k] for k in ("function", "custom") if isinstance(call.get(k), Mapping)), call)
        arguments = said.get("arguments", said.get("input", ""))
        yield ToolCall(str(said.get("name") or ""), _text_or_json(arguments), str(call.get("id") or ""))


def _tool_uses(parts: Sequence[Mapping[str, Any]]) -> Iterator[ToolCall]:
    for part in parts:
        if part.get("type") == "tool_use":
            given = part.get("input")
            invalid = given.get("INVALID_JSON") if isinstance(given, Mapping) and len(given) == 1 else None
            arguments = invalid if isinstance(invalid, str) else _dumped(given)
            yield ToolCall(str(part.get("name") or ""), arguments, str(part.get("id") or ""))


def _text_or_json(value: Any) -> str:
    return value if isinstance(value, str) else _dumped(value)


def _listed(parts: list[Any]) -> str:
    return _dumped(parts) if parts else ""


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _json_meaning(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
