"""The content blocks of the Messages API, and what they are as messages of the chat completions API.

A signature of a thinking block is a handle: it stands for the thinking that was recorded, whatever a client makes of
the text beside it. The input of a tool call is an object there and text here. Text that is no JSON object, which a
policy may write, is put into an object under ``INVALID_JSON``, so that the agent sees it as it is, and is taken out
of it again when it comes back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence, Set
from itertools import takewhile
from operator import is_
from typing import Any, NoReturn

from agentrl.errors import shown
from agentrl.gateway.dialects.conversation import says_nothing
from agentrl.gateway.dialects.refusals import text, wrong

__all__ = ["INVALID_JSON", "Conversation", "answer_blocks", "tool_arguments", "tool_input"]

Block = dict[str, Any]
Message = dict[str, Any]

INVALID_JSON = "INVALID_JSON"
"""The key of the text in an input that the policy did not write as a JSON object."""
ERRORS = "tool_result.is_error"
"""What is unmet where a tool result is marked as an error: the policy reads its text alone."""
SIGNATURE = "thinking.signature"
"""What is unmet where thinking comes back with a signature that was not given in its session."""

_BLOCK_FIELDS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"type", "text"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
    "tool_use": frozenset({"type", "id", "name", "input"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error"}),
    "tool_reference": frozenset({"type", "tool_name"}),
}
_NOTES = frozenset({"cache_control", "citations", "parsed_output", "caller", "toolset_name"})
"""What a block may hold besides that tells the model nothing."""
_MESSAGE_FIELDS = frozenset({"role", "content"})
_MESSAGE_NOTES = frozenset(
    {
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "id",
        "model",
        "stop_details",
        "stop_reason",
        "stop_sequence",
        "type",
        "usage",
    }
)
"""What an SDK writes beside the content of an answer."""
_ROLES = ("user", "assistant", "system")
_LAST = "messages"
"""Under which key the messages of the last request are remembered, as they were given and as they were read."""


class Conversation:
    """Reads the messages of a request."""

    def __init__(self, thinking: Callable[[str], str | None], memory: MutableMapping[str, Any]) -> None:
        """``thinking`` gives what a signature stands for; see ``WireRequest.thinking``.

        ``memory`` is what the dialect keeps in the session: objects that begin its last request too were read then.
        """
        self._thinking = thinking
        self._memory = memory
        self.messages: list[Message] = []
        """The conversation so far in the shape of the chat completions API."""
        self.unmet: set[str] = set()
        """What of it cannot be shown to the policy; see ``Call.unmet``."""

    def add_system(self, system: Any) -> None:
        """Add the ``system`` of a request, a text or a list of texts. Raises ``GatewayError`` (400)."""
        if system is not None:
            self.messages.append({"role": "system", "content": _texts(system, "system")})

    def add_messages(self, value: Any) -> None:
        """Add the ``messages`` of a request. Raises ``GatewayError`` (400), naming the block at fault."""
        if not isinstance(value, list) or not value:
            raise wrong("messages", f"is not a list of at least one message: {shown(value, 80)}")
        given, read = self._memory.get(_LAST, ((), ()))
        known = sum(takewhile(bool, map(is_, value, given)))
        reads: list[_Read] = [
            *read[:known],
            *(
                _read(message, f"messages.{index}", self._thinking)
                for index, message in enumerate(value[known:], known)
            ),
        ]
        self._memory[_LAST] = value, reads
        for messages, unmet in reads:
            self.unmet |= unmet
            for message in messages:
                self._add(message)

    def _add(self, message: Message) -> None:
        """Add a message; two turns of the assistant in a row are one, as the API has it."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last["role"] == message["role"] == "assistant":
            self.messages[-1] = _joined(last, message)
        else:
            self.messages.append(message)


_Read = tuple[Sequence[Message], Set[str]]
"""What one message of a request is, and what of it is unmet."""


def _read(message: Any, where: str, thinking: Callable[[str], str | None]) -> _Read:
    unmet: set[str] = set()
    role, content = _role(message, where), message.get("content")
    where = f"{where}.content"
    if role == "system":
        return [{"role": role, "content": _texts(content, where)}], unmet
    if isinstance(content, str):
        return [{"role": role, "content": content}], unmet
    if role == "user":
        return list(_of_the_user(_listed(content, where), where, unmet)), unmet

    def thought(signature: str) -> str:
        known = thinking(signature)
        if known is None:
            unmet.add(SIGNATURE)
        return known or ""

    return [_turn(_listed(content, where), where, thought)], unmet


def _of_the_user(blocks: Sequence[Any], where: str, unmet: set[str]) -> Iterator[Message]:
    """Texts of the user and results of tools, in their order."""
    texts: list[Block] = []
    for index, block in enumerate(blocks):
        at = f"{where}.{index}"
        kind = _kind(block, at)
        if kind == "tool_result":
            if texts:
                yield {"role": "user", "content": _content(texts)}
                texts = []
            yield _result(block, at, unmet)
        elif kind == "text":
            texts.append({"type": "text", "text": _needed(block, "text", at)})
        else:
            _refuse_block(kind, at)
    if texts or not blocks:
        yield {"role": "user", "content": _content(texts)}


def _result(block: Block, where: str, unmet: set[str]) -> Message:
    if block.get("is_error"):
        unmet.add(ERRORS)
    content = block.get("content")
    told = content if isinstance(content, str) else _result_text(content, f"{where}.content")
    return {"role": "tool", "tool_call_id": _needed(block, "tool_use_id", where), "content": told}


def _joined(turn: Message, more: Message) -> Message:
    """Two messages of the assistant as one turn."""
    joined: Message = {"role": "assistant", "content": turn["content"] + more["content"]}
    thoughts = [each["reasoning_content"] for each in (turn, more) if "reasoning_content" in each]
    if thoughts:
        joined["reasoning_content"] = "".join(dict.fromkeys(thoughts))
    calls = [*turn.get("tool_calls", ()), *more.get("tool_calls", ())]
    return joined | {"tool_calls": calls} if calls else joined


def _turn(blocks: Sequence[Any], where: str, thought: Callable[[str], str]) -> Message:
    """A turn of the assistant: its text, its thinking and its calls."""
    texts: list[str] = []
    thinking: dict[str, str] = {}
    calls: list[Block] = []
    for index, block in enumerate(blocks):
        at = f"{where}.{index}"
        match kind := _kind(block, at):
            case "text":
                texts.append(_needed(block, "text", at))
            case "thinking" | "redacted_thinking":
                signature = text(block, "data" if kind == "redacted_thinking" else "signature", at) or ""
                thinking[signature] = thought(signature)
            case "tool_use":
                calls.append(_call(block, at))
            case _:
                _refuse_block(kind, at)
    turn: Message = {"role": "assistant", "content": "".join(texts)}
    if all_of_it := "".join(thinking.values()):
        turn["reasoning_content"] = all_of_it
    if calls:
        turn["tool_calls"] = calls
    return turn


def _call(block: Block, where: str) -> Block:
    given = block.get("input")
    if not isinstance(given, dict):
        raise wrong(f"{where}.input", f"is not an object: {shown(given, 80)}")
    function = {"name": _needed(block, "name", where), "arguments": tool_arguments(given)}
    return {"id": _needed(block, "id", where), "type": "function", "function": function}


def _role(message: Any, where: str) -> str:
    if not isinstance(message, dict):
        raise wrong(where, f"is not an object: {shown(message, 80)}")
    role = message.get("role")
    if role not in _ROLES:
        raise wrong(f"{where}.role", f"is {shown(role, 80)}", fix="one of " + ", ".join(_ROLES))
    if message.keys() > _MESSAGE_FIELDS:
        _check_fields(message, _MESSAGE_FIELDS, _MESSAGE_NOTES, where)
    return str(role)


def _kind(block: Any, where: str) -> str:
    """The type of a block, whose fields are known if the type is."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise wrong(where, f"is no block with a type: {shown(block, 80)}")
    if (fields := _BLOCK_FIELDS.get(kind)) is not None and not block.keys() <= fields:
        _check_fields(block, fields, _NOTES, where)
    return kind


def _check_fields(value: Mapping[str, Any], fields: frozenset[str], notes: frozenset[str], where: str) -> None:
    for name in sorted(value.keys() - fields - notes):
        if not says_nothing(value[name]):
            raise wrong(f"{where}.{name}", "is not a field that can be honoured here", code="unknown_parameter")


def _refuse_block(kind: str, where: str) -> NoReturn:
    fix = "the policy reads and writes text, and calls tools of the client"
    raise wrong(where, f"is not text but {shown(kind, 80)}", fix=fix, code="unsupported_content")


def _listed(content: Any, where: str) -> list[Any]:
    if not isinstance(content, list):
        raise wrong(where, f"is neither a text nor a list of blocks: {shown(content, 80)}")
    return content


def _needed(block: Mapping[str, Any], name: str, where: str) -> str:
    """The text under ``name``, which has to be there."""
    value = text(block, name, where)
    if value is None:
        raise wrong(f"{where}.{name}", "is missing")
    return value


def _texts(content: Any, where: str) -> Any:
    """Content that is a text, or a list of nothing but texts."""
    if isinstance(content, str):
        return content
    parts: list[Block] = []
    for index, block in enumerate(_listed(content, where)):
        at = f"{where}.{index}"
        if (kind := _kind(block, at)) != "text":
            _refuse_block(kind, at)
        parts.append({"type": "text", "text": _needed(block, "text", at)})
    return _content(parts)


def _content(parts: list[Block]) -> Any:
    """Several texts as the parts of a message, and one as itself."""
    return parts if len(parts) > 1 else "".join(part["text"] for part in parts)


def _result_text(content: Any, where: str) -> str:
    """What a tool has returned, as one text. A tool that it refers to is in the prompt, and shown by its name."""
    if content is None:
        return ""
    texts = []
    for index, block in enumerate(_listed(content, where)):
        at = f"{where}.{index}"
        kind = _kind(block, at)
        if kind not in ("text", "tool_reference"):
            _refuse_block(kind, at)
        texts.append(_needed(block, "text" if kind == "text" else "tool_name", at))
    return "".join(texts)


def answer_blocks(message: Mapping[str, Any], signature: str, *, tells_thinking: bool) -> list[Block]:
    """The blocks of an answer.

    ``signature`` stands for its thinking, whose text is left out unless ``tells_thinking``.
    """
    blocks: list[Block] = []
    if thought := message.get("reasoning_content") or message.get("reasoning"):  # Endpoints differ in the name.
        blocks.append({"type": "thinking", "thinking": thought if tells_thinking else "", "signature": signature})
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        blocks.append({"type": "text", "text": content})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        given = {"id": call["id"], "name": function["name"], "input": tool_input(function["arguments"])}
        blocks.append({"type": "tool_use", **given})
    return blocks


def tool_input(arguments: str) -> dict[str, Any]:
    """The input of a call whose arguments the policy wrote as this text."""
    try:
        value = json.loads(arguments, parse_constant=_refuse_number)
        if isinstance(value, dict) and not _holds_text(value):
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # Numbers and texts that JSON can carry.
            return value
    except (ValueError, RecursionError):
        pass
    return {INVALID_JSON: arguments}


def tool_arguments(given: Mapping[str, Any]) -> str:
    """The arguments that an input stands for. They equal what ``tool_input`` was given in meaning."""
    return str(given[INVALID_JSON]) if _holds_text(given) else json.dumps(given, ensure_ascii=False)


def _holds_text(given: Mapping[str, Any]) -> bool:
    """Whether an input is a text that is no JSON object. One that the policy wrote in this form is put into another."""
    return len(given) == 1 and isinstance(given.get(INVALID_JSON), str)


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
