"""The conversations of a session: which recorded turn a request continues.

Turns form a trie over messages. Turns of the assistant are compared by meaning, because frameworks rewrite them:
absent content equals empty content, tool arguments are compared as parsed JSON, ids of tool calls and fields that are
null do not count, and thinking may have been left out or moved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agentrl.gateway.bodies import in_common
from agentrl.gateway.sampling import Digested
from agentrl.tokens.contract import Position
from agentrl.tokens.template import Messages, text_of, thinking_of

__all__ = [
    "Continuation",
    "Conversations",
    "History",
    "Match",
    "MessageKey",
    "Turn",
    "Way",
    "message_key",
    "tools_key",
    "tools_of",
]

_MARKS = re.compile(r"</?think>|\s+")
_NOTHING_SPELLED: frozenset[str] = frozenset()
_REMEMBERED = 32
"""How many of the last requests that nothing continues yet are remembered whole; an agent has fewer conversations."""

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
    words: str | None = None
    """What it says and thinks, without what frameworks change; ``None`` until it is needed."""


@dataclass(frozen=True, slots=True)
class Match:
    """The longest recorded conversation that a request begins with."""

    turn: Turn | None
    messages: int
    """How many of the request's messages it holds."""
    fork_reason: str | None
    """Why the rest of the request cannot extend it, where that is known from the messages alone."""


@dataclass(slots=True)
class _Node:
    children: dict[MessageKey, _Node] = field(default_factory=dict)
    turns: dict[str, list[Turn]] | None = None
    """The turns that end here, by their tools."""

    def child(self, key: MessageKey) -> _Node:
        """The node after one more message, made where there is none."""
        child = self.children.get(key)
        if child is None:
            child = self.children[key] = _Node()
        return child


@dataclass(slots=True, eq=False)
class Way:
    """The messages of a request, and where they lead among the recorded conversations."""

    tools: str
    messages: Messages
    keys: list[MessageKey]
    nodes: list[_Node]
    """The nodes after the first messages, as far as there are any."""
    repeated: int
    """How many of the messages a recent request had as well, under the same tools."""
    passed: int
    """How many of the messages lead past no turn under the same tools that has other thinking than they have."""
    over: _Recent | None = None
    """The recent request all of which this one repeats."""


class _Recent(NamedTuple):
    """A recorded request whose continuation is likely to come next, with what that would have to find out again."""

    way: Way
    turn: Turn
    history: History | None


class History(NamedTuple):
    """The token ids of a turn's conversation. They are not to be changed."""

    prompt: list[int]
    completion: Sequence[int]
    """As far as the agent saw it."""
    digested: Digested | None = None
    """The digest of both, where it is known."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a request follows from what its session has recorded."""

    match: Match
    way: Way
    history: History
    """The ids of the matched turn's conversation; empty where there is none."""
    spelled: list[frozenset[str]]
    """For each message of the request, the control tokens that the policy spelled out when it wrote it."""
    known: int = 0
    """How much of a prompt without messages the matched turn holds: characters of a text, or ids."""


class Conversations:
    """Recorded turns by their messages. Not thread-safe: its session serialises access.

    What a request repeats of one of the last few is compared with that as a whole, which takes a fraction of the time
    of reading it; so the turns of a long conversation cost what is new in them.
    """

    def __init__(self) -> None:
        self._root = _Node()
        self._recent: list[_Recent] = []
        self._tools: dict[str, str] = {}
        self._sampled: set[MessageKey] = set()
        self._spelled: dict[MessageKey, frozenset[str]] = {}

    def add(
        self,
        way: Way,
        key: MessageKey,
        turn: Turn,
        spelled: frozenset[str] = frozenset(),
        *,
        parent: Turn | None = None,
        history: History | None = None,
    ) -> None:
        """Record ``turn`` after the messages of ``way``, under the ``key`` of its own message.

        ``spelled`` are the control tokens that its text spells out in other tokens. ``parent`` is the turn that it
        continues.
        """
        node = way.nodes[-1] if way.nodes else self._root
        for each in way.keys[len(way.nodes) :]:
            node = node.child(each)
            way.nodes.append(node)
        before, node = node, node.child(key)
        if (retold := _retold(turn.message)) is not None:
            before.children.setdefault(retold, node)
            self._sampled.add(retold)
        if node.turns is None:
            node.turns = {}
        node.turns.setdefault(way.tools, []).append(turn)
        self._sampled.add(key)
        if spelled:
            self._spelled[key] = spelled | self._spelled.get(key, _NOTHING_SPELLED)
        self._recent = [each for each in self._recent if each is not way.over and each.turn is not parent]
        self._recent = [*self._recent[1 - _REMEMBERED :], _Recent(way, turn, history)]
        way.over = None

    def spelled(self, keys: Sequence[MessageKey]) -> list[frozenset[str]]:
        """For each message the control tokens that recorded turns which read like it have spelled out."""
        if not self._spelled:
            return [_NOTHING_SPELLED] * len(keys)
        return [self._spelled.get(key, _NOTHING_SPELLED) for key in keys]

    def history(self, turn: Turn) -> History | None:
        """The ids of the conversation of ``turn``, where that is one of the last few."""
        return next((each.history for each in self._recent if each.turn is turn), None)

    def find(self, tools: str, messages: Messages) -> tuple[Match, Way]:
        """The recorded turn that ``messages`` continue, preferably under the same tools."""
        way = self._way(self._tools.setdefault(tools, tools), messages)
        best, length, walked = self._longest(way)
        for depth in range(len(way.nodes) - 1, length - 1, -1):
            turns = way.nodes[depth].turns or {}
            others = [turn for name, those in turns.items() if name is not way.tools for turn in those]
            if others and (turn := _choose(others, way.messages[depth])) is not None:
                same = any(turn in turns[name] for name in turns if _tools_alone(name) == _tools_alone(way.tools))
                return Match(turn, depth + 1, "template variables changed" if same else "tools changed"), way
        replaced = 0 < walked < len(messages) and messages[walked]["role"] == "assistant"
        if replaced or not self._sampled.isdisjoint(way.keys[length:]):
            return Match(best, length, "history edited"), way
        return Match(best, length, None), way

    def _way(self, tools: str, messages: Messages) -> Way:
        nearest, common = _nearest(self._recent, messages)
        known = nearest.way if nearest is not None else Way(tools, [], [], [], 0, 0)
        repeated = common if known.tools is tools else 0
        keys = known.keys[:common]
        keys += map(message_key, messages[common:])
        way = Way(
            tools,
            messages,
            keys,
            known.nodes[:common],
            repeated,
            min(known.passed, repeated),
            nearest if common == len(known.messages) else None,
        )
        node = way.nodes[-1] if way.nodes else self._root
        for key in way.keys[len(way.nodes) :]:
            child = node.children.get(key)
            if child is None:
                break
            way.nodes.append(child)
            node = child
        return way

    def _longest(self, way: Way) -> tuple[Turn | None, int, int]:
        """The last turn on the way under the same tools, how many messages lead to it, and how many were seen before.

        A turn with other thinking than the message has ends the way: its ids are not those of the request.
        """
        walked = len(way.nodes)
        for depth in range(way.passed, walked):
            turns = _under(way.tools, way.nodes[depth])
            if turns and _choose(turns, way.messages[depth]) is None:
                walked = depth
                break
        self._pass(way, len(way.messages) if walked == len(way.nodes) else walked)
        for depth in range(walked - 1, -1, -1):
            if turns := _under(way.tools, way.nodes[depth]):
                return _choose(turns, way.messages[depth]), depth + 1, walked
        return None, 0, walked

    def _pass(self, way: Way, most: int) -> None:
        """Note how far the way leads whatever is recorded later: to a turn of the assistant that may still be."""
        for depth in range(way.passed, most):
            recorded = depth < len(way.nodes) and _under(way.tools, way.nodes[depth])
            if not recorded and way.messages[depth]["role"] == "assistant":
                most = depth
                break
        way.passed = most


def _retold(message: Mapping[str, Any]) -> MessageKey | None:
    """The key of a turn with tool calls as smolagents writes it into history: the calls as a Python list, in its text.

    ``None`` for turns without calls, and for those whose arguments are not JSON, which it does not send back.
    """
    calls = message.get("tool_calls")
    if not calls or not all("function" in call for call in calls):
        return None
    try:
        told = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.loads(call["function"]["arguments"]),
                },
            }
            for call in calls
        ]
    except (ValueError, RecursionError):
        return None
    text = text_of(message)
    return (message["role"], f"{text}\nCalling tools:\n{told}".strip() if text else f"Calling tools:\n{told}")


def _tools_alone(key: str) -> str:
    """What ``tools_key`` makes of tools, without the variables."""
    return key.partition("\n")[0]


def _under(tools: str, node: _Node) -> list[Turn] | None:
    return None if node.turns is None else node.turns.get(tools)


def _nearest(recent: Sequence[_Recent], messages: Messages) -> tuple[_Recent | None, int]:
    """The recent request that begins most like ``messages``, and how many messages both have."""
    nearest, most = None, 0
    for each in recent:
        known = each.way.messages
        is_longer = most < len(known) and most < len(messages) and known[most] == messages[most]
        if is_longer and (common := in_common(known, messages)) > most:
            nearest, most = each, common
    return nearest, most


def _choose(turns: Sequence[Turn], message: Mapping[str, Any]) -> Turn | None:
    """One of several turns that read alike; ``None`` where the message holds thinking that none of them has.

    Preferred are, in this order, the turn with the message's thinking, the one with its tool call ids, one that the
    agent has, and the one least continued, so that each of several equal samples is continued once.
    """
    if thinking_of(message):
        turns = [turn for turn in turns if _given_back(turn.message, message)]
    if len(turns) < 2:
        return turns[0] if turns else None
    ids = tuple(call.get("id") for call in message.get("tool_calls") or ())
    words = _all_of(message)
    return min(
        turns,
        key=lambda turn: (
            _words(turn) != words,
            turn.tool_call_ids != ids,
            not turn.delivered,
            turn.continued,
            turn.digest,
        ),
    )


def _words(turn: Turn) -> str:
    if turn.words is None:
        turn.words = _all_of(turn.message)
    return turn.words


def _given_back(given: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether ``message``, whose text is that of the turn ``given``, has the same thinking, in any place."""
    if _all_of(message) == _all_of(given):
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
