"""Probe conversations, by which a renderer is held against a model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any, Literal

from agentrl.tokens.template import Message

__all__ = ["CONTINUATIONS", "CONVERSATIONS", "TOOLS", "Continuation", "Conversation", "Kind", "kind_of"]

Kind = tuple[Literal["user", "tool", "system", "system and user"], bool]
"""Who speaks in a continuation, ``tool`` meaning nobody but tools; and whether thinking came before it."""

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Evaluate \"a op b\" & say 'x < y' — précisément.",
            "parameters": {
                "type": "object",
                "properties": {
                    "expression": {"type": "string", "description": "e.g. 2*3"},
                    "exact": {"type": "boolean"},
                },
                "required": ["expression"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}},
]


def kind_of(roles: Set[str], thinking: bool) -> Kind:
    """The kind of a continuation in which ``roles`` speak."""
    user, system = "user" in roles, not roles.isdisjoint({"system", "developer"})
    if system:
        return ("system and user" if user else "system", thinking)
    return ("user" if user else "tool", thinking)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to render with the header of the next turn."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Continuation:
    """A turn of the assistant and what follows it, as a recorded chain is extended."""

    before: list[Message]
    turn: Message
    after: list[Message]
    kind: Kind
    tools: list[dict[str, Any]] | None = None

    def conversation(self) -> Conversation:
        """All of it at once."""
        return Conversation([*self.before, self.turn, *self.after], self.tools, self.kind[1])


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str, *calls: tuple[str, dict[str, Any]], reasoning: str | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for n, (name, arguments) in enumerate(calls)
        ]
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    return message


def _result(text: str, n: int = 0) -> Message:
    return {"role": "tool", "tool_call_id": f"call_{n}", "name": "calculate", "content": text}


_SYSTEM = _system("You are terse.\nNever guess.")
_ASK = _user("What is 12 * 34? Ünïcödé 数学 🙂\n")
_CALL = ("calculate", {"expression": "12 * 34", "exact": False, "notes": [None, "é", {"deep": 1.5}]})


def _continuations() -> Iterator[Continuation]:
    for thought in (None, "Multiply the two.\nThen check."):
        for head in ([_ASK], [_SYSTEM, _ASK]):
            answer = _assistant("It is 408.", reasoning=thought)
            yield Continuation(head, answer, [_user("  And halved? ")], ("user", thought is not None))
            call = _assistant("", _CALL, reasoning=thought)
            yield Continuation(head, call, [_result("408")], ("tool", thought is not None), TOOLS)
            brief = [_system("Be brief.")]
            yield Continuation(head, answer, brief, ("system", thought is not None))
            yield Continuation(head, answer, [*brief, _user("Again?")], ("system and user", thought is not None))
        two = _assistant("Let me see.", _CALL, ("now", {}), reasoning=thought)
        results = [_result('{"value": 408}'), _result("12:00 🙂", 1)]
        yield Continuation([_SYSTEM, _ASK], two, results, ("tool", thought is not None), TOOLS)
    mixed = [_result("408"), _user("Thanks. Again?")]
    yield Continuation([_ASK], _assistant("", _CALL), mixed, ("user", False), TOOLS)


CONTINUATIONS: list[Continuation] = list(_continuations())
"""Each is a conversation as well; several begin alike and differ in one thing."""

_AFTER_TOOLS = [_SYSTEM, _ASK, _assistant("", _CALL), _result("408"), _assistant("It is 408.")]

CONVERSATIONS: list[Conversation] = [
    Conversation([_ASK]),
    Conversation([_SYSTEM, _ASK]),
    Conversation([_ASK], TOOLS),
    Conversation([_SYSTEM, _ASK], TOOLS[:1]),
    Conversation([*_AFTER_TOOLS, _user("And 5?")], TOOLS),
    Conversation([_ASK, _assistant("408"), _user("and?"), _assistant("816"), _user("more")]),
    *(continuation.conversation() for continuation in CONTINUATIONS),
]
