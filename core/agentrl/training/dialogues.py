"""Dialogues: conversations that somebody has written, one JSON object a line in the shape of the OpenAI API.

::

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], "tools": [ … ]}

A line is checked before anything is made of it, so that what is wrong with a file is told with the number of the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import ConfigError, near_matches, shown
from agentrl.tasks.records import as_object, parse_json
from agentrl.tokens.template import Message, Tools, text_of, thinking_of

__all__ = ["Dialogue", "Trained", "read_dialogues"]

Trained = Literal["all", "last"]
"""Which turns of the assistant are trained."""

_MARK = b"\xef\xbb\xbf"
_ROLES = ("system", "developer", "user", "assistant", "tool")
_ENDS_WITH_ASSISTANT = "a conversation is trained on what the assistant says: add a message of it"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One conversation."""

    place: str
    """Where it stands, for messages: ``chats.jsonl:12``."""
    messages: Sequence[Message]
    tools: Tools | None
    trained: Sequence[int]
    """The indices of the messages that are trained, all of them the assistant's."""


def read_dialogues(path: Path, trained: Trained) -> Iterator[Dialogue]:
    """The conversations of the file ``path``, one a line; blank lines are skipped.

    ``trained`` says which turns are trained where no message has a ``weight`` of 0. Raises ``ConfigError`` for a file
    that cannot be read, and for a line that is no conversation, with its number and what is wrong.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                raw = line.removeprefix(_MARK) if number == 1 else line
                if raw.strip():
                    place = f"{path}:{number}"
                    yield _dialogue(as_object(parse_json(raw, place), place, "a conversation"), place, trained)
    except OSError as error:
        raise ConfigError(
            f"the conversations {str(path)!r} cannot be read: {error.strerror or error}",
            fix="name a file of JSON lines, or a run",
            key="sft.data",
        ) from error


def _dialogue(row: Mapping[str, Any], place: str, trained: Trained) -> Dialogue:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ConfigError(
            f"{place} has no messages: {shown(messages, 40) if 'messages' in row else f'its keys are {list(row)[:8]}'}",
            fix='write {"messages": [{"role": …, "content": …}, …]}, with "tools" beside them where there are some',
        )
    checked = [_message(message, f"{place}, message {index + 1}") for index, message in enumerate(messages)]
    _check_calls(checked, place)
    spoken = [index for index, message in enumerate(checked) if message["role"] == "assistant"]
    if not spoken:
        raise ConfigError(f"{place} has no message of the assistant", fix=_ENDS_WITH_ASSISTANT)
    chosen = [index for index in spoken if _weight(messages[index], f"{place}, message {index + 1}")]
    if not chosen:
        raise ConfigError(f"{place} has weight 0 on every message of the assistant", fix="leave the line out")
    return Dialogue(place, checked, _tools(row.get("tools"), place), chosen if trained == "all" else chosen[-1:])


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise ConfigError(f"{place} is {shown(message, 40)}, not an object", fix="a message has a role and a content")
    role = message.get("role")
    if role not in _ROLES:
        raise ConfigError(f"{place} has the role {shown(role, 40)}", fix=near_matches(str(role), _ROLES))
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ConfigError(f"{place} has the content part {shown(part, 60)}", fix="only parts of text are read")
    elif content is not None and not isinstance(content, str):
        raise ConfigError(f"{place} has the content {shown(content, 40)}", fix="a content is a text, or parts of text")
    checked: Message = {key: value for key, value in message.items() if key != "weight" and value is not None}
    checked["content"] = text_of(message)
    if role == "assistant":
        return _turn(checked, place)
    if message.get("tool_calls"):
        raise ConfigError(f"{place} is of the role {role!r} and has tool calls", fix="only the assistant calls tools")
    if role != "tool" and content is None:
        raise ConfigError(f"{place} has no content", fix="write a text, which may be empty")
    return checked


def _turn(message: Message, place: str) -> Message:
    if "function_call" in message:
        raise ConfigError(f"{place} has a function_call, the form before tool_calls", fix="write it as tool_calls")
    reasoning = message.get("reasoning_content", "")
    if not isinstance(reasoning, str):
        raise ConfigError(f"{place} has the reasoning_content {shown(reasoning, 40)}", fix="write it as a text")
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise ConfigError(f"{place} has the tool_calls {shown(calls, 40)}", fix="write a list of calls")
    if calls:
        message["tool_calls"] = [_call(call, f"{place}, call {index + 1}") for index, call in enumerate(calls)]
    else:
        message.pop("tool_calls", None)
        spoken = message["content"].rpartition("</think>")[2] if thinking_of(message) else message["content"]
        if not spoken.strip():
            raise ConfigError(
                f"{place} is of the assistant and says nothing: it has no text and no tool call",
                fix="leave the conversation out, or end it before that message",
            )
    return message


def _call(call: Any, place: str) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or not isinstance(function, dict):
        raise ConfigError(
            f"{place} is {shown(call, 60)}",
            fix='write {"id": …, "type": "function", "function": {"name", "arguments"}}',
        )
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise ConfigError(f"{place} has the arguments {shown(arguments, 40)}", fix="write them as text that holds JSON")
    given = f"{place}, arguments"
    as_object(parse_json(arguments.encode("utf-8", "surrogatepass"), given), given, "what a tool is called with")
    if not isinstance(call.get("id"), str) or not call["id"]:
        raise ConfigError(f"{place} has no id", fix="give each call an id, which its result names as tool_call_id")
    return {"id": call["id"], "type": "function", "function": {"name": name, "arguments": arguments}}


def _check_calls(messages: Sequence[Message], place: str) -> None:
    """Raise ``ConfigError`` for a call that goes on without its result, and for a result of no call."""
    open_calls: dict[str, int] = {}
    for index, message in enumerate(messages):
        here = f"{place}, message {index + 1}"
        if message["role"] == "tool":
            call = message.get("tool_call_id")
            if call not in open_calls:
                raise ConfigError(
                    f"{here} is the result of {shown(call, 40)}, which no message right before it calls",
                    fix=near_matches(str(call), open_calls) if open_calls else "put the call before it",
                )
            del open_calls[call]
            continue
        if open_calls:
            call, caller = next(iter(open_calls.items()))
            raise ConfigError(
                f"{place}, message {caller + 1} calls a tool, as {call!r}, and its result does not follow",
                fix="add a message of the role tool with that tool_call_id, or end the conversation with the call",
            )
        open_calls = {call["id"]: index for call in message.get("tool_calls") or ()}


def _weight(message: Mapping[str, Any], place: str) -> bool:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ConfigError(f"{place} has the weight {shown(weight, 40)}", fix="a weight is 0 or 1")
    return bool(weight)


def _tools(tools: Any, place: str) -> Tools | None:
    if tools is None or tools == []:
        return None
    for tool in tools if isinstance(tools, list) else [tools]:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConfigError(
                f"{place} has the tool {shown(tool, 60)}",
                fix='write "tools" as a list of {"type": "function", "function": {"name", "parameters", …}}',
            )
    return tools if isinstance(tools, list) else [tools]
