"""Probe conversations, and what they tell about a chat template.

``CONVERSATIONS`` and ``CONTINUATIONS`` are what a renderer is compared with the template on. ``measure`` renders
sentinels to find what of tools reaches the prompt (``Abilities``), ``written_ends`` to find the ids that end a turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.errors import GatewayError
from agentrl.tokens.template import ChatTemplate, Message, Messages, Tools, text_of

if TYPE_CHECKING:
    from agentrl.tokens.renderer import Kind

__all__ = [
    "CONTINUATIONS",
    "CONVERSATIONS",
    "LOST",
    "THOUGHT",
    "TOOLS",
    "Abilities",
    "Continuation",
    "Conversation",
    "heads",
    "measure",
    "news",
    "turn_of",
    "written_ends",
]

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


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to render with the header of the next assistant turn."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Continuation:
    """A conversation up to an assistant turn, that turn, and the messages by which its prompt is extended."""

    before: list[Message]
    turn: Message
    after: list[Message]
    kind: Kind
    tools: list[dict[str, Any]] | None = None

    def conversation(self) -> Conversation:
        """Return all of it as one conversation."""
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


def _result(text: str, n: int = 0, name: str = "calculate") -> Message:
    return {"role": "tool", "tool_call_id": f"call_{n}", "name": name, "content": text}


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
"""Each is used as a conversation too. Several differ in one respect only, such as the system message or thinking."""

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

THOUGHT = "Probe thinking."
_LONG = 24
"""How often a long probe repeats itself: some templates look back a number of messages."""


def heads(*, system: bool, calls: bool, thinking: bool) -> Iterator[list[Message]]:
    """Yield conversations up to a turn of the assistant, short and long; with ``calls``, some hold calls of tools."""
    thought = THOUGHT if thinking else None
    opening, ask = [_SYSTEM] if system else [], _user("Probe question.")
    answered = [_user("Probe question 0?"), _assistant("Probe answer.", reasoning=thought)]
    called = [_assistant("", _CALL, reasoning=thought), _result("Probe result.")]
    yield [*opening, ask]
    if calls:
        yield [*opening, ask, *called]
        yield [*opening, ask, *called * _LONG]
        yield [*opening, *[answered[0], *called, answered[1]] * _LONG, ask]
    yield [*opening, *answered, ask]
    yield [*opening, *answered * _LONG, ask]


def turn_of(*, text: bool, calls: int) -> Message:
    """Return a turn of the assistant with or without a text, and with this many calls."""
    return _assistant("Probe answer." if text else "", *[_CALL] * calls)


def news(roles: Sequence[str], *, calls: int) -> list[Message]:
    """Return messages of these roles after a turn with this many calls; each has a text of its own."""
    found: list[Message] = []
    for role in roles:
        for n in range(max(calls, 1) if role == "tool" else 1):
            text = f"New probe {len(found)}."
            found.append(_result(text, n) if role == "tool" else {"role": role, "content": text})
    return found


LOST = "lost_in_prompt"
"""The code of a refusal for a request of which the model would not see everything, or whose calls are not read."""

_FIX = "set model.chat_template to a file with a template that shows them, or use another model"
_READ = (
    "set model.chat_template to a file whose form of calls is read, name a renderer with model.renderer, or use "
    "another model"
)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What of a conversation with tools reaches the prompt, and whether the model's tool calls are read back."""

    unseen: tuple[str, ...] = ()
    """Which of the tools' ``names``, ``descriptions`` and ``parameters`` do not reach the prompt."""
    calls: bool = True
    """Whether a tool call of an earlier turn, with its arguments, is in the prompt."""
    several: bool = True
    """Whether all calls of an earlier turn are, where it has several."""
    beside_text: bool = True
    """Whether a call of an earlier turn is, where the turn has text as well."""
    text_beside: bool = True
    """Whether the text of an earlier turn is, where the turn has a call as well."""
    results: bool = True
    """Whether results of tools are in the prompt."""
    reads: bool = True
    """Whether a tool call in the form that the template writes is read as one."""

    @property
    def tools(self) -> bool:
        """Whether an agent with tools can be served."""
        return not self.unseen and self.calls and self.results and self.reads

    @property
    def complete(self) -> bool:
        """Whether ``check`` accepts every request."""
        return self.tools and self.several and self.beside_text

    def lost(self) -> str:
        """Return a phrase for what of tools does not reach the prompt; empty where everything does."""
        lost = [f"the {_listed(self.unseen)} of tools"] if self.unseen else []
        if not self.calls:
            lost.append("earlier tool calls")
        if not self.results:
            lost.append("results of tools")
        return _listed(lost) if lost else ""

    def check(self, origin: str, messages: Messages, tools: Tools | None, *, calls_tools: bool = True) -> None:
        """Check that a request reaches the prompt of the model that messages call ``origin``.

        Raises ``GatewayError`` (400, code ``LOST``) where a part of it would not, and, if ``calls_tools``, where tools
        are offered and the model's calls could not be read.
        """
        if tools and self.unseen:
            raise _refusal(f"never shows the {_listed(self.unseen)} of tools", origin, "tools")
        if not (self.calls and self.several and self.beside_text and self.results):
            for what in (what for message in messages for what in self._dropped(message)):
                raise _refusal(f"drops {what}", origin, "messages")
        if tools and calls_tools and not self.reads:
            raise GatewayError(
                f"tool calls in the form that the chat template of {origin} gives them cannot be read: every call of "
                "the policy would come back as text",
                code=LOST,
                param="tools",
                fix=_READ,
            )

    def drops_text(self, messages: Messages) -> bool:
        """Return whether the template leaves out text of ``messages`` because it stands beside tool calls."""
        if self.text_beside:
            return False
        return any(message.get("tool_calls") and text_of(message).strip() for message in messages)

    def _dropped(self, message: Mapping[str, Any]) -> Iterator[str]:
        calls = message.get("tool_calls") or ()
        if calls and not self.calls:
            yield "tool calls from the history"
        if len(calls) > 1 and not self.several:
            yield "all but the first tool call of a turn"
        if calls and not self.beside_text and text_of(message).strip():
            yield "tool calls beside text"
        if message["role"] == "tool" and not self.results:
            yield "results of tools from the history"


def _refusal(loses: str, origin: str, param: str) -> GatewayError:
    text = f"the chat template of {origin} {loses}: the model would not see what the agent sent"
    return GatewayError(text, code=LOST, param=param, fix=_FIX)


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


_Text = Callable[[Messages, Tools | None], str]
"""Renders a prompt to text. Raises ``GatewayError`` where that is refused."""

_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool_u1",
        "description": "Description of probe u2.",
        "parameters": {
            "type": "object",
            "properties": {"probe_field_u3": {"type": "string", "description": "A text."}},
            "required": ["probe_field_u3"],
        },
    },
}
_PARTS = {"names": "probe_tool_u1", "descriptions": "Description of probe u2.", "parameters": "probe_field_u3"}


def measure(text: _Text, *, reads: bool) -> Abilities:
    """Return the abilities of whatever renders ``text``; ``reads`` is passed on.

    ``text`` takes messages and tools, returns the prompt as text, and raises ``GatewayError`` where it refuses them.
    """
    ask = _user("What is it?")
    one = [ask, _sentinel_calls("", 1), _sentinel_result(0)]
    two = [ask, _sentinel_calls("", 2), _sentinel_result(0), _sentinel_result(1)]
    beside = [ask, _sentinel_calls("Text beside w4.", 1), _sentinel_result(0)]
    calls = _shows(text, one, "probe_call_0", "probe_key_0", "probe value 0")
    results = _shows(text, one, "probe result 0")
    openings = [[ask], [_system("Be brief."), ask], *([one] if calls and results else [])]
    return Abilities(
        unseen=_unseen(text, openings),
        calls=calls,
        several=calls and _shows(text, two, "probe_call_0", "probe value 0", "probe_call_1", "probe value 1"),
        beside_text=calls and _shows(text, beside, "probe_call_0", "probe value 0"),
        text_beside=calls and _shows(text, beside, "Text beside w4."),
        results=results,
        reads=reads,
    )


def _unseen(text: _Text, openings: Sequence[Messages]) -> tuple[str, ...]:
    written = []
    for messages in openings:
        try:
            written.append(text(messages, [_TOOL]))
        except GatewayError:
            continue
    return tuple(part for part, sentinel in _PARTS.items() if not written or any(sentinel not in w for w in written))


def _shows(text: _Text, messages: Messages, *sentinels: str) -> bool:
    try:
        written = text(messages, [_TOOL])
    except GatewayError:
        return False
    return all(sentinel in written for sentinel in sentinels)


def _sentinel_calls(content: str, count: int) -> Message:
    return _assistant(content, *((f"probe_call_{n}", {f"probe_key_{n}": f"probe value {n}"}) for n in range(count)))


def _sentinel_result(n: int) -> Message:
    return _result(f"probe result {n}", n, f"probe_call_{n}")


_ANSWER, _VALUE = "sentinel of a text q7", "sentinel of a value q8"


def written_ends(template: ChatTemplate) -> frozenset[int]:
    """Return the ids with which ``template`` ends an assistant turn of text, and one of tool calls."""
    return frozenset(_after_text(template) + _after_calls(template))


def _after_text(template: ChatTemplate) -> list[int]:
    """The first added token that the template writes after the last text of a conversation.

    A turn in the middle of a conversation may end with another token, which the policy never samples (gpt-oss). But
    where the template writes none after the last turn, the header of the next turn ends this one (GLM).
    """
    vocabulary, turn = template.vocabulary, _assistant(_ANSWER)
    added = vocabulary.added_tokens_decoder
    ids = vocabulary.encode(_tail(template, [turn], _ANSWER))
    if ends := [token for token in ids if token in added]:
        return ends[:1]
    ids = vocabulary.encode(_tail(template, [turn, _user("Hi")], _ANSWER).lstrip())
    return [token for token in ids[:1] if token in added]


def _after_calls(template: ChatTemplate) -> list[int]:
    """The last special token that the template writes after tool calls, unless it writes one after every call.

    Where it writes none, the first special token of the results that follow.
    """
    for count in (2, 1):
        calls = _assistant("", *[("look", {"at": _VALUE})] * count) | {"content": None}
        if tail := _special(template, _tail(template, [calls], _VALUE)):
            opening = _special(template, _whole(template, [], prompt=True))
            whole = _special(template, _whole(template, [calls]))
            return tail[-1:] if whole.count(tail[-1]) - opening.count(tail[-1]) == 1 else []
        results = [_result("7", n, "look") for n in range(count)]
        if tail := _special(template, _tail(template, [calls, *results], _VALUE)):
            return tail[:1]
    return []


def _special(template: ChatTemplate, text: str) -> list[int]:
    return [token for token in template.vocabulary.encode(text) if token in template.vocabulary.special_ids]


def _tail(template: ChatTemplate, turns: Sequence[Message], sentinel: str) -> str:
    """What the template writes after the last ``sentinel``; empty where the sentinel is not written at all."""
    _, found, after = _whole(template, turns).rpartition(sentinel)
    return after if found else ""


def _whole(template: ChatTemplate, turns: Sequence[Message], *, prompt: bool = False) -> str:
    try:
        return template.text([_user("Hi"), *turns], prompt=prompt)
    except GatewayError:
        return ""
