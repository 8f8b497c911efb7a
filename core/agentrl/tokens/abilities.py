"""What of a conversation with tools reaches the model's prompt, and whether its own calls are read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.errors import GatewayError
from agentrl.tokens.form import text_of

__all__ = ["LOST", "Abilities", "measure"]

LOST = "lost_in_prompt"
"""The code of a refusal whose cause is the chat template or the parser of calls."""

_Messages = Sequence[Mapping[str, Any]]
_Tools = Sequence[Mapping[str, Any]]
Text = Callable[[_Messages, _Tools | None], str]
"""Renders a prompt to text. Raises ``GatewayError`` where that is refused."""

_FIX = "set model.chat_template to a file with a template that shows them, or use another model"
_READ = "set model.chat_template to a file whose form of calls is read, name a renderer with model.renderer, or use "


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the prompt holds of tools. Told by sentinels in conversations that are rendered."""

    unseen: tuple[str, ...] = ()
    """Which of the tools' names, descriptions and parameters never reach the prompt."""
    calls: bool = True
    """Whether tool calls of earlier turns are in the prompt, arguments and all."""
    several: bool = True
    """Whether all calls of one turn are."""
    beside_text: bool = True
    """Whether a call is that stands beside text."""
    text_beside: bool = True
    """Whether the text is that stands beside a call."""
    results: bool = True
    """Whether results of tools are in the prompt."""
    reads: bool = True
    """Whether a call as the model's own template writes it is read as one."""

    @property
    def tools(self) -> bool:
        """Whether an agent with tools can be served."""
        return not self.unseen and self.calls and self.results and self.reads

    def lost(self) -> str:
        """What of tools never reaches the prompt, in words; empty where all does."""
        lost = [f"the {_listed(self.unseen)} of tools"] if self.unseen else []
        if not self.calls:
            lost.append("earlier tool calls")
        if not self.results:
            lost.append("results of tools")
        return _listed(lost) if lost else ""

    def check(self, origin: str, messages: _Messages, tools: _Tools | None, *, calls_tools: bool = True) -> None:
        """Raise ``GatewayError`` (400) where something of a request would not reach the prompt of ``origin``.

        So it does where tools may be called and the calls could not be read.
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
                fix=f"{_READ}another model",
            )

    def drops_text(self, messages: _Messages) -> bool:
        """Whether a turn of ``messages`` says something beside its calls that the template leaves out."""
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
_SYSTEM = {"role": "system", "content": "Be brief."}
_ASK = {"role": "user", "content": "What is it?"}


def measure(text: Text, *, reads: bool) -> Abilities:
    """The abilities of whatever renders ``text``."""
    one = [_ASK, _turn("", 1), _result(0)]
    two = [_ASK, _turn("", 2), _result(0), _result(1)]
    beside = [_ASK, _turn("Text beside w4.", 1), _result(0)]
    calls = _holds(text, one, "probe_call_0", "probe_key_0", "probe value 0")
    results = _holds(text, one, "probe result 0")
    openings = [[_ASK], [_SYSTEM, _ASK], *([one] if calls and results else [])]
    return Abilities(
        unseen=_unseen(text, openings),
        calls=calls,
        several=calls and _holds(text, two, "probe_call_0", "probe value 0", "probe_call_1", "probe value 1"),
        beside_text=calls and _holds(text, beside, "probe_call_0", "probe value 0"),
        text_beside=calls and _holds(text, beside, "Text beside w4."),
        results=results,
        reads=reads,
    )


def _unseen(text: Text, openings: Sequence[_Messages]) -> tuple[str, ...]:
    written = []
    for messages in openings:
        try:
            written.append(text(messages, [_TOOL]))
        except GatewayError:
            continue
    return tuple(part for part, sentinel in _PARTS.items() if not written or any(sentinel not in w for w in written))


def _holds(text: Text, messages: _Messages, *sentinels: str) -> bool:
    try:
        written = text(messages, [_TOOL])
    except GatewayError:
        return False
    return all(sentinel in written for sentinel in sentinels)


def _turn(content: str, count: int) -> dict[str, Any]:
    functions = (
        {"name": f"probe_call_{n}", "arguments": json.dumps({f"probe_key_{n}": f"probe value {n}"})}
        for n in range(count)
    )
    calls = [{"id": f"call_{n}", "type": "function", "function": function} for n, function in enumerate(functions)]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _result(n: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{n}", "name": f"probe_call_{n}", "content": f"probe result {n}"}
