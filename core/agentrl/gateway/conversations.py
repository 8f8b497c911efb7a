"""The conversations of a session: which recorded turn a request continues, and the request bodies, stored once.

Turns form a trie over messages. Turns of the assistant are compared by meaning, because frameworks rewrite them:
absent content equals empty content, tool arguments are compared as parsed JSON, ids of tool calls and fields that are
null do not count, and thinking may have been left out or moved.

An agent sends its whole history with every call. ``Bodies`` keeps equal messages once, so that what is stored grows
with the length of a conversation and not with its square.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from agentrl.tokens.contract import Position
from agentrl.tokens.template import Messages, text_of, thinking_of

__all__ = [
    "Bodies",
    "Continuation",
    "Conversations",
    "Match",
    "MessageKey",
    "Turn",
    "message_key",
    "tools_key",
    "tools_of",
]

_MARKS = re.compile(r"</?think>|\s+")
_NOTHING_SPELLED: frozenset[str] = frozenset()

MessageKey = tuple[Any, ...]
"""A message's meaning: role, name and text; for a turn of the assistant its role, text and tool calls."""


@dataclass(slots=True)
class Turn:
    """A recorded completion, as the end of the conversation that led to it."""

    call: str
    """The call's response id."""
    digest: bytes
    """What its seed derives from; orders equal turns independently of which was recorded first."""
    prompt_tokens: int
    """How many tokens its prompt has; 0 where there are no tokens."""
    thinking: bool
    """Whether the ids of its conversation hold thinking of the policy."""
    message: Mapping[str, Any]
    """What the agent was given."""
    tool_call_ids: tuple[str, ...]
    asked_tokens: int = 0
    """How many tokens its prompt had when the last question was asked; 0 where that is not known."""
    position: Position | None = None
    """Where in the token tree the conversation goes on; ``None`` where what the agent saw ends inside a token, or
    where there are no tokens."""
    continued: int = 0
    """How many calls continue it, those under way included."""
    delivered: bool = True
    """Whether the agent has it, as far as is known."""


@dataclass(frozen=True, slots=True)
class Match:
    """The longest recorded conversation that a request begins with."""

    turn: Turn | None
    messages: int
    """How many of the request's messages it holds."""
    fork_reason: str | None
    """Why the rest of the request cannot extend it, where that is known from the messages alone."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a request follows from what its session has recorded."""

    match: Match
    history: list[int]
    """The token ids of the matched turn's conversation; empty where there is none."""
    spelled: list[frozenset[str]]
    """For each message of the request, the control tokens that the policy spelled out when it wrote it."""
    known: int = 0
    """How much of a prompt without messages the matched turn holds: characters of a text, or ids."""


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
        """Record ``turn`` under the ``keys`` of all messages that lead to it, its own included.

        ``spelled`` are the control tokens that its text spells out in other tokens.
        """
        node = self._roots.get(tools)
        if node is None:
            node = self._roots[tools] = _Node()
        for key in keys:
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node()
            node = child
        node.turns.append(turn)
        self._sampled.add(keys[-1])
        if spelled:
            self._spelled[keys[-1]] = spelled | self._spelled.get(keys[-1], _NOTHING_SPELLED)

    def spelled(self, keys: Sequence[MessageKey]) -> list[frozenset[str]]:
        """For each message the control tokens that recorded turns which read like it have spelled out."""
        if not self._spelled:
            return [_NOTHING_SPELLED] * len(keys)
        return [self._spelled.get(key, _NOTHING_SPELLED) for key in keys]

    def find(self, tools: str, messages: Messages, keys: Sequence[MessageKey]) -> Match:
        """The recorded turn that ``messages`` continue, preferably under the same tools."""
        if not self._roots:
            return Match(None, 0, None)
        best, length, known = _longest(self._roots.get(tools), messages, keys)
        for other, root in self._roots.items():
            if other != tools:
                turn, longer, _ = _longest(root, messages, keys)
                if longer > length:
                    same = other.partition("\n")[0] == tools.partition("\n")[0]
                    return Match(turn, longer, "template variables changed" if same else "tools changed")
        replaced = known < len(messages) and known > 0 and messages[known]["role"] == "assistant"
        if replaced or not self._sampled.isdisjoint(keys[length:]):
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
    """One of several turns that read alike; ``None`` where the message holds thinking that none of them has.

    Preferred are, in this order, the turn with the message's thinking, the one with its tool call ids, one that the
    agent has, and the one least continued, so that each of several equal samples is continued once.
    """
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
    """Whether ``message``, whose text is that of the turn ``given``, has the same thinking in any place, or none."""
    if not thinking_of(message) or _all_of(message) == _all_of(given):
        return True
    reasoning = _reasoning(message)
    return reasoning == _reasoning(given) if reasoning else _bare(text_of(message)) == _bare(text_of(given))


def _reasoning(message: Mapping[str, Any]) -> str:
    return str(message.get("reasoning_content") or "").strip()


def _all_of(message: Mapping[str, Any]) -> str:
    return _bare(f"{_reasoning(message)}{text_of(message)}")


def _bare(text: str) -> str:
    """``text`` without what frameworks change when they move thinking: its marks, and white space."""
    return _MARKS.sub("", text)


def message_key(message: Mapping[str, Any]) -> MessageKey:
    """A key that is equal for messages of equal meaning."""
    role = message["role"]
    text = text_of(message)
    if role != "assistant":
        return ("system" if role == "developer" else role, message.get("name"), text)
    calls = message.get("tool_calls")
    spoken = text.rpartition("</think>")[2].strip()
    if not calls:
        return (role, spoken)
    functions = [call["function"] for call in calls]
    return (role, spoken, *((function["name"], _meaning(function["arguments"])) for function in functions))


def tools_key(tools: Sequence[object] | None, variables: Mapping[str, Any] | None = None) -> str:
    """A key that is equal for equal tools in the same order and equal variables of the chat template.

    It is their JSON, empty without tools, and after a line break that of the variables, if there are any.
    """
    written = json.dumps(tools) if tools else ""
    return f"{written}\n{json.dumps(variables, sort_keys=True)}" if variables else written


def tools_of(key: str) -> tuple[list[Any] | None, dict[str, Any]]:
    """The tools and the variables that ``tools_key`` made a key of."""
    tools, _, variables = key.partition("\n")
    return json.loads(tools) if tools else None, json.loads(variables) if variables else {}


def _meaning(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """The last item of a list, and the list before it: lists that begin alike share their beginning."""

    before: _Link | None
    item: Mapping[str, Any]

    def items(self) -> list[Mapping[str, Any]]:
        """The whole list."""
        items: list[Mapping[str, Any]] = []
        link: _Link | None = self
        while link is not None:
            items.append(link.item)
            link = link.before
        items.reverse()
        return items


class Body(Mapping[str, Any]):
    """A request's body, plain JSON, whose lists of objects are assembled when they are read."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        value = self._fields[name]
        return value.items() if isinstance(value, _Link) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Copies and pickles are plain dicts."""
        return dict, (dict(self),)


class Bodies:
    """Request bodies that share equal messages and tools. Not thread-safe: its session serialises access."""

    def __init__(self) -> None:
        self._links: dict[tuple[_Link | None, bytes], _Link] = {}
        self._items: dict[bytes, Mapping[str, Any]] = {}

    def keep(self, body: Mapping[str, Any]) -> Body:
        """``body`` as it is to be kept. The caller must not change it, or anything in it, afterwards."""
        return Body({name: self._kept(value) if type(value) is list else value for name, value in body.items()})

    def _kept(self, value: list[Any]) -> Any:
        link: _Link | None = None
        for item in value:
            if type(item) is not dict:
                return value
            digest = hashlib.blake2b(_exact(item), digest_size=16).digest()
            known = self._links.get((link, digest))
            if known is None:
                known = self._links[link, digest] = _Link(link, self._items.setdefault(digest, item))
            link = known
        return value if link is None else link


def _exact(item: dict[str, Any]) -> bytes:
    """Bytes that are equal for the same JSON value alone: 1, 1.0 and true, which are equal to Python, differ in them.

    orjson writes them in a fraction of the time of ``marshal``; but it writes NaN as null, and not every text.
    """
    try:
        written = orjson.dumps(item)
    except TypeError:
        return marshal.dumps(item, 2)
    return marshal.dumps(item, 2) if b"null" in written else written
