"""Items of the Responses API as messages of the chat completions API.

A turn of the policy is one message there, and several items here: its thinking, its text and each of its calls. Items
that stand side by side are one turn again, whatever of their thinking and their ids a client has dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from operator import is_
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.dialects.conversation import Message, says_nothing
from agentrl.gateway.dialects.refusals import text, wrong
from agentrl.gateway.dialects.tools import input_arguments

__all__ = ["Conversation", "Made"]

_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""The types of content that are text, with the field that holds it."""
_ROLES = ("user", "system", "developer", "assistant")
_FIELDS: Mapping[str, frozenset[str]] = {
    "message": frozenset({"role", "content"}),
    "reasoning": frozenset({"summary", "content", "encrypted_content"}),
    "function_call": frozenset({"call_id", "name", "arguments"}),
    "custom_tool_call": frozenset({"call_id", "name", "input"}),
    "function_call_output": frozenset({"call_id", "output", "name"}),
    "custom_tool_call_output": frozenset({"call_id", "output", "name"}),
}
"""The types of items that can be read, with the fields that say something to the policy."""
_NOTES = frozenset({"type", "id", "status", "phase", "end_turn", "async", "caller"})
"""Fields about where an item comes from, and how far it got; none of it is for the policy to read."""
_ELSEWHERE = ("_call", "_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response")
_OTHERS = frozenset(
    {"program", "program_output", "compaction", "additional_tools", "tool_search_output", "configuration_update"}
)
"""Items of tools that others run, of histories that others have compacted and of settings that others know: nothing in
them is for the policy."""


_LAST = "items"
"""Under which key the items of the last request are remembered, as they were given and as they were read."""


@dataclass(frozen=True, slots=True)
class Made:
    """A tool call that was made in this session."""

    response: str
    """The id of the response that it is part of."""
    arguments: str | None = None
    """The arguments as the policy wrote them, where the item that a client has does not say them."""


@dataclass(frozen=True, slots=True)
class _Read:
    """An item as it is read, whatever stands beside it."""

    kind: str
    """``message`` of a system, a user or a tool; ``said``, ``thought`` or ``called`` by the policy; or ``nothing``."""
    value: Any = None
    """The message, the text, or the call."""
    made: Made | None = None
    """What is known of a call."""
    unmet: frozenset[str] = frozenset()


class Conversation:
    """The messages that items come to, one item after another."""

    def __init__(
        self,
        made: Callable[[str], Made | None],
        thinking: Callable[[str], str | None],
        memory: MutableMapping[str, Any] | None = None,
    ) -> None:
        """``made`` finds a call by its id, and ``thinking`` what a handle stands for.

        ``memory`` is what the dialect keeps in the session: items that began its last request too were read then.
        """
        self.messages: list[Message] = []
        self.unmet: set[str] = set()
        """What could not be read for the policy."""
        self._made = made
        self._thinking = thinking
        self._memory = {} if memory is None else memory
        self._thought: str | None = None
        self._turn: Message | None = None
        """The turn of the policy that the next item may be part of."""
        self._called: tuple[Message, Made | None] | None = None
        """The last turn with calls, and the first of these, as long as nothing but their results follows."""

    def say(self, role: str, said: str) -> None:
        """Add a text of a system or a user."""
        self._add(_Read("message", {"role": role, "content": said}))

    def add(self, items: Sequence[Any], where: str = "input") -> None:
        """Add the items of a list. Raises ``GatewayError`` (400), naming the one at fault."""
        for index, item in enumerate(items):
            self._add(self._read(item, f"{where}[{index}]"))

    def add_input(self, items: Sequence[Any]) -> None:
        """Add the items of a request itself, of which most may have been read before. Raises as ``add``."""
        given, read = self._memory.get(_LAST, ((), ()))
        known = sum(takewhile(bool, map(is_, items, given)))
        reads = [
            *read[:known],
            *(self._read(item, f"input[{index}]") for index, item in enumerate(items[known:], known)),
        ]
        self._memory[_LAST] = items, reads
        for each in reads:
            self._add(each)

    def end(self) -> list[Message]:
        """Return the messages once there are no more items."""
        self._end_turn()
        return self.messages

    def _add(self, item: _Read) -> None:
        self.unmet |= item.unmet
        match item.kind:
            case "message":
                self._end_turn()
                if item.value["role"] != "tool":
                    self._called = None
                self.messages.append(item.value)
            case "said":
                if self._turn is not None and not self._turn.get("tool_calls"):
                    self._end_turn()
                turn = self._open()
                turn["content"] = turn.get("content", "") + item.value
            case "thought":
                self._end_turn()
                self._thought = item.value
            case "called":
                turn = self._turn_of(item.made) or self._open()
                turn.setdefault("tool_calls", []).append(item.value)
                if self._called is None or self._called[0] is not turn:
                    self._called = turn, item.made

    def _turn_of(self, made: Made | None) -> Message | None:
        """The turn that a call is part of where the results of other calls of it came in between."""
        if made is None or self._called is None or self._turn is not None or self._thought is not None:
            return None
        turn, first = self._called
        return turn if first is not None and first.response == made.response else None

    def _open(self) -> Message:
        """The turn under way, or a new one."""
        if self._turn is None:
            self._turn = {"role": "assistant"}
            if self._thought is not None:
                self._turn["reasoning_content"] = self._thought
            self._thought = None
            self.messages.append(self._turn)
        return self._turn

    def _end_turn(self) -> None:
        """What follows is no part of the turn under way. Thinking that came to nothing is a turn without words."""
        if self._thought is not None:
            self._open().setdefault("content", "")
        self._turn = None

    def _read(self, item: Any, where: str) -> _Read:
        if not isinstance(item, dict):
            raise wrong(where, f"is not an object: {shown(item, 80)}")
        kind = item.get("type") or ("message" if "role" in item else None)
        match kind:
            case "message":
                read = _message(item, where)
            case "reasoning":
                read = self._reasoning(item, where)
            case "function_call" | "custom_tool_call":
                read = self._call(item, kind, where)
            case "function_call_output" | "custom_tool_call_output":
                read = _output(item, where)
            case str() if kind in _OTHERS or kind.endswith(_ELSEWHERE):
                return _Read("nothing", unmet=frozenset({kind}))
            case _:
                raise wrong(f"{where}.type", f"is {shown(kind, 80)}", fix=f"one of {', '.join(sorted(_FIELDS))}")
        known = _FIELDS[kind]
        unread = [name for name in item if name not in known and name not in _NOTES and not says_nothing(item[name])]
        return replace(read, unmet=read.unmet.union(f"{kind}.{name}" for name in unread)) if unread else read

    def _reasoning(self, item: Mapping[str, Any], where: str) -> _Read:
        handle = item.get("encrypted_content")
        if handle is not None:
            thought = self._thinking(handle) if isinstance(handle, str) else None
            unmet = frozenset({"reasoning.encrypted_content"} if thought is None else ())
            return _Read("thought", thought or None, unmet=unmet)
        parts = item.get("content") or item.get("summary") or []
        if not isinstance(parts, list) or not all(_is_thought(part) for part in parts):
            raise wrong(f"{where}.content", f"is not a list of texts: {shown(parts, 80)}")
        return _Read("thought", "\n\n".join(part["text"] for part in parts) or None)

    def _call(self, item: Mapping[str, Any], kind: str, where: str) -> _Read:
        said = "arguments" if kind == "function_call" else "input"
        for name in ("call_id", "name", said):
            if text(item, name, where) is None:
                raise wrong(f"{where}.{name}", "is missing")
        made = self._made(item["call_id"])
        arguments = item[said]
        if kind == "custom_tool_call":
            arguments = input_arguments(arguments) if made is None or made.arguments is None else made.arguments
        function = {"name": item["name"], "arguments": arguments}
        return _Read("called", {"id": item["call_id"], "type": "function", "function": function}, made)


def _message(item: Mapping[str, Any], where: str) -> _Read:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong(f"{where}.role", f"is {shown(role, 80)}", fix=f"one of {', '.join(_ROLES)}")
    texts = _texts(item.get("content"), f"{where}.content")
    if role == "assistant":
        return _Read("said", "".join(texts))
    return _Read("message", {"role": role, "content": _content(texts)})


def _output(item: Mapping[str, Any], where: str) -> _Read:
    if text(item, "call_id", where) is None:
        raise wrong(f"{where}.call_id", "is missing")
    texts = _texts(item.get("output"), f"{where}.output")
    return _Read("message", {"role": "tool", "tool_call_id": item["call_id"], "content": _content(texts)})


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _texts(value: Any, where: str) -> list[str]:
    """The texts in a content: a text, or a list of parts. Raises ``GatewayError`` (400) for what is no text."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong(where, f"is neither a text nor a list of parts: {shown(value, 80)}")
    return [_text(part, f"{where}[{index}]") for index, part in enumerate(value)]


def _text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    said = part.get(_TEXTS[kind]) if isinstance(kind, str) and kind in _TEXTS else None
    if isinstance(said, str):
        return said
    raise wrong(
        where,
        f"is not text but {shown(kind or part, 80)}",
        fix="the policy reads text only",
        code="unsupported_content",
    )


def _content(texts: list[str]) -> str | list[dict[str, str]]:
    """The content of a message: one text, or several as they came."""
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": each} for each in texts]
