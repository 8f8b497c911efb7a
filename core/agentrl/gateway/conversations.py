"""The conversations of a session: which recorded turn a request continues.

A trie over messages. Turns of the assistant are compared by meaning, because frameworks rewrite them:
absent content is empty, tool arguments are parsed JSON, ids of tool calls and fields that are null do
not count, and thinking may have been left out or moved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.tokens.contract import Position
from agentrl.tokens.template import Messages, text_of, thinking_of

__all__ = ["Conversations", "Match", "MessageKey", "Turn", "message_key", "tools_key"]

_MARKS = re.compile(r"</?think>|\s+")

MessageKey = tuple[Any, ...]
"""A message's meaning: role, name and text; of the assistant's, text and tool calls."""


@dataclass(slots=True)
class Turn:
    """A recorded completion, as the end of the conversation that led to it."""

    call: str
    digest: bytes
    """Of its seed: orders equal turns whichever was recorded first."""
    position: Position | None
    """Where the conversation goes on; ``None`` where what the agent saw ends inside a token."""
    prompt_tokens: int
    thinking: bool
    """Whether thinking of the policy is among the ids of its conversation."""
    message: Mapping[str, Any]
    """What the agent was given."""
    tool_call_ids: tuple[str, ...]
    continued: int = 0
    delivered: bool = True
    """Whether the agent has it, as far as is known."""


@dataclass(frozen=True, slots=True)
class Match:
    """The longest recorded conversation that a request begins with."""

    turn: Turn | None
    messages: int
    """How many of the request's messages it holds."""
    fork_reason: str | None
    """Why the rest cannot follow it, where that is known already."""


@dataclass(slots=True)
class _Node:
    children: dict[MessageKey, _Node] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)


class Conversations:
    """Recorded turns by their messages. Not thread-safe: its session serialises access."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node] = {}
        self._sampled: set[MessageKey] = set()
        self._spelled: dict[MessageKey, frozenset[str]] = {}

    def add(self, tools: str, keys: Sequence[MessageKey], turn: Turn, spelled: frozenset[str] = frozenset()) -> None:
        """Record ``turn`` at the end of the messages with ``keys``, its own among them.

        ``spelled`` are the control tokens that it spells out.
        """
        node = self._roots.setdefault(tools, _Node())
        for key in keys:
            node = node.children.setdefault(key, _Node())
        node.turns.append(turn)
        self._sampled.add(keys[-1])
        if spelled:
            self._spelled[keys[-1]] = spelled | self.spelled(keys[-1])

    def spelled(self, key: MessageKey) -> frozenset[str]:
        """The control tokens that turns which read as ``key`` does have spelled out."""
        return self._spelled.get(key, frozenset())

    def find(self, tools: str, messages: Messages, keys: Sequence[MessageKey]) -> Match:
        """The recorded turn that ``messages`` continue, under the same tools."""
        best, length, known = _longest(self._roots.get(tools), messages, keys)
        for other, root in self._roots.items():
            if other != tools:
                turn, longer, _ = _longest(root, messages, keys)
                if longer > length:
                    return Match(turn, longer, "tools changed")
        replaced = known < len(messages) and known > 0 and messages[known]["role"] == "assistant"
        if self._roots and (replaced or not self._sampled.isdisjoint(keys[length:])):
            return Match(best, length, "history edited")
        return Match(best, length, None)


def _longest(root: _Node | None, messages: Messages, keys: Sequence[MessageKey]) -> tuple[Turn | None, int, int]:
    """The last turn on the way, how many messages lead to it, and how many were seen in any conversation."""
    best, length, node = None, 0, root
    for depth, (message, key) in enumerate(zip(messages, keys, strict=True)):
        node = node.children.get(key) if node is not None else None
        turn = _choose(node.turns, message) if node is not None and node.turns else None
        if node is None or (node.turns and turn is None):
            return best, length, depth
        if turn is not None:
            best, length = turn, depth + 1
    return best, length, len(keys)


def _choose(turns: Sequence[Turn], message: Mapping[str, Any]) -> Turn | None:
    """Of turns that read alike, the one with the message's thinking and tool call ids, if they tell; then one that
    the agent has; then the one least continued, so that equal samples are each continued where several conversations
    go on.
    ``None`` where the message holds thinking that none of them has."""
    turns = [turn for turn in turns if _given_back(turn.message, message)]
    if len(turns) < 2:
        return turns[0] if turns else None
    ids = tuple(call.get("id") for call in message.get("tool_calls") or ())
    all_of_it = _all_of(message)
    return min(
        turns,
        key=lambda turn: (
            _all_of(turn.message) != all_of_it,
            turn.tool_call_ids != ids,
            not turn.delivered,
            turn.continued,
            turn.digest,
        ),
    )


def _given_back(given: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether ``message``, which says what the turn ``given`` says, thinks nothing else: it has the same thinking,
    wherever that stands, or has lost it."""
    if not thinking_of(message) or _all_of(message) == _all_of(given):
        return True
    reasoning = _reasoning(message)
    return reasoning == _reasoning(given) if reasoning else _bare(text_of(message)) == _bare(text_of(given))


def _reasoning(message: Mapping[str, Any]) -> str:
    return str(message.get("reasoning_content") or "").strip()


def _all_of(message: Mapping[str, Any]) -> str:
    return _bare(f"{_reasoning(message)}{text_of(message)}")


def _bare(text: str) -> str:
    """``text`` without what frameworks change where they move thinking: its marks, and white space."""
    return _MARKS.sub("", text)


def message_key(message: Mapping[str, Any]) -> MessageKey:
    """Equal for messages of equal meaning."""
    role = message["role"]
    text = text_of(message)
    if role != "assistant":
        return ("system" if role == "developer" else role, message.get("name"), text)
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    spoken = text.rpartition("</think>")[2].strip()
    return (role, spoken, *((call["name"], _meaning(call["arguments"])) for call in calls))


def tools_key(tools: Sequence[object] | None) -> str:
    """Equal for equal tools in the same order."""
    return json.dumps(tools) if tools else ""


def _meaning(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
