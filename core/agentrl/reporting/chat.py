"""The conversations of an episode in the form of the chat completions API, whichever protocol they were held in.

A call repeats the conversation that it continues, so one conversation tells of many calls. An episode with forks, or
of several agents, has several conversations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Call
from agentrl.gateway.dialects.messages.tools import read_tools as messages_tools
from agentrl.gateway.dialects.sent import sent_messages
from agentrl.gateway.dialects.tools import INPUT, free_text
from agentrl.gateway.dialects.tools import read_tools as chat_tools
from agentrl.rollout.contract import Episode, delivered_calls

__all__ = ["Chat", "chats", "request_messages", "request_tools", "response_message"]

Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation: what was said to the policy, and what it said."""

    messages: list[Message]
    """In the form of the chat completions API, thinking as ``reasoning_content``. A message of the assistant that the
    policy did not say here, whose end was cut off, or that an earlier conversation of the episode holds as well, has
    ``weight`` 0."""
    tools: list[dict[str, Any]] | None
    """The tools that the last call was offered, in the form of that API."""
    calls: tuple[str, ...]
    """The ids of the calls whose answers have no ``weight`` of 0."""
    fault: str | None = None
    """Why nothing can be learned from it as a conversation; ``None`` where that is possible."""


def chats(episode: Episode) -> list[Chat]:
    """The conversations of ``episode``, in the order in which they ended. Each answer of the policy counts in one.

    Only calls whose answers were delivered are told of. Where an agent sends a changed history, the answers that it
    left out stand in a conversation that ends with them.
    """
    calls = delivered_calls(episode)
    by_id = {call.id: call for call in calls}
    told: set[str] = set()
    found = []
    for call in reversed(calls):
        if call.id not in told:
            found.append(_chat(call, by_id, told))
    return found[::-1]


def request_messages(call: Call) -> list[Message]:
    """The messages that a call sent, in the form of the chat completions API; those of the system first.

    What it only refers to, such as an earlier response, is not among them.
    """
    return [message for sent in sent_messages(call.request) for message in _messages(sent)]


def request_tools(call: Call) -> list[dict[str, Any]] | None:
    """The tools that a call offered, in the form of the chat completions API; ``None`` where there are none."""
    given = call.request.get("tools")
    is_responses = "messages" not in call.request
    tools = [tool for tool in given if isinstance(tool, dict)] if isinstance(given, list) else []
    return [function for tool in tools for function in _functions(tool, is_responses=is_responses)] or None


def _chat(call: Call, by_id: Mapping[str, Call], told: set[str]) -> Chat:
    """The conversation that ends with ``call``. The calls whose answers it holds are added to ``told``."""
    messages = [*_history(call, by_id), response_message(call)]
    own = _own(messages, [*_ancestors(call, by_id), call])
    trained = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        said = own.get(index)
        if said is not None:
            messages[index] = message = response_message(said)
        if said is None or said.id in told or said.finish_reason == "length":
            message["weight"] = 0
        else:
            trained.append(said.id)
    told |= {said.id for said in own.values()}
    return Chat(messages, request_tools(call), tuple(trained), _fault(messages, trained))


def _history(call: Call, by_id: Mapping[str, Call]) -> list[Message]:
    """What a call was asked with, including what it only refers to."""
    refers = any(call.request.get(name) is not None for name in ("previous_response_id", "conversation"))
    parent = by_id.get(call.parent or "") if refers else None
    before = [] if parent is None else [*_history(parent, by_id), response_message(parent)]
    sent = request_messages(call)
    if before and sent and sent[0]["role"] == "system":  # Instructions hold for one response.
        before = before[1:] if before[0]["role"] == "system" else before
        return [sent[0], *before, *sent[1:]]
    return [*before, *sent]


def _ancestors(call: Call, by_id: Mapping[str, Call]) -> list[Call]:
    found = []
    while (parent := by_id.get(call.parent or "")) is not None:
        found.append(parent)
        call = parent
    return found[::-1]


def _own(messages: Sequence[Message], line: Sequence[Call]) -> dict[int, Call]:
    """Which messages the calls of a ``line`` have answered, whatever a framework changed when it sent them again.

    The last call has answered the last one. The others are looked for from the end: examples that an agent gives, and
    that may read alike, come first.
    """
    found = {len(messages) - 1: line[-1]}
    before = len(messages) - 1
    for call in reversed(line[:-1]):
        meaning = _meaning(response_message(call))
        for index in reversed(range(before)):
            if messages[index]["role"] == "assistant" and _meaning(messages[index]) == meaning:
                found[index], before = call, index
                break
    return found


def response_message(call: Call) -> Message:
    """What a call was answered, in the form of the chat completions API."""
    (message, *_) = _messages({"role": "assistant", **call.message})
    return message


def _meaning(message: Message) -> tuple[object, ...]:
    content = message["content"]
    spoken = content.rpartition("</think>")[2].strip() if isinstance(content, str) else json.dumps(content)
    calls = [each["function"] for each in message.get("tool_calls", ())]
    return spoken, *((each["name"], _same_json(each["arguments"])) for each in calls)


def _same_json(text: str) -> str:
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, RecursionError):
        return text


def _messages(value: Any) -> Iterator[Message]:
    """A message as it was sent; one of the Messages API may hold results of tools, each of which is one of its own."""
    if not isinstance(value, Mapping):
        yield {"role": "user", "content": [value]}
        return
    content = value.get("content")
    parts = content if isinstance(content, list) else []
    results = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "tool_result"]
    for part in results:
        answered = {"tool_call_id": part["tool_use_id"]} if "tool_use_id" in part else {}
        yield {"role": "tool", **answered, "content": _content(part.get("content"))}
    if not results or len(results) < len(parts):
        yield _message(value, [part for part in parts if part not in results] if parts else content)


def _message(value: Mapping[str, Any], content: Any) -> Message:
    message: Message = {"role": value.get("role", "user"), "content": _content(content)}
    if message["role"] == "assistant":
        parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
        thoughts = [value.get("reasoning_content") or value.get("reasoning"), *(part.get("thinking") for part in parts)]
        if thinking := "\n\n".join(each for each in thoughts if isinstance(each, str) and each):
            message["reasoning_content"] = thinking
        if calls := [
            *map(_call, value.get("tool_calls") or ()),
            *(_use(p) for p in parts if p.get("type") == "tool_use"),
        ]:
            message["tool_calls"] = calls
        if isinstance(refusal := value.get("refusal"), str) and not message["content"]:
            message["content"] = refusal
    for name in ("name", "tool_call_id"):
        if isinstance(value.get(name), str):
            message[name] = value[name]
    return message


def _content(content: Any) -> Any:
    """A content as text, or as it is where parts of it are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return [content]
    shown = [part for part in content if not (isinstance(part, Mapping) and part.get("type") in _ELSEWHERE)]
    texts = [part.get("text", part.get("refusal")) if isinstance(part, Mapping) else part for part in shown]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else shown


_ELSEWHERE = ("thinking", "redacted_thinking", "tool_use", "tool_result")
"""Parts of a content in the Messages API that the chat completions API has beside it."""


def _call(call: Any) -> dict[str, Any]:
    call = call if isinstance(call, Mapping) else {}
    function = call.get("function") or {}
    arguments = function.get("arguments", "")
    if custom := call.get("custom"):  # The policy was offered it as a function of one text.
        function, arguments = custom, {INPUT: custom.get("input", "")}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id", ""),
        "type": "function",
        "function": {"name": str(function.get("name", "")), "arguments": text},
    }


def _use(part: Mapping[str, Any]) -> dict[str, Any]:
    return _call({"id": part.get("id", ""), "function": {"name": part.get("name"), "arguments": part.get("input", {})}})


def _functions(tool: dict[str, Any], *, is_responses: bool) -> list[dict[str, Any]]:
    """A tool as the policy was offered it; nothing where the gateway has left it out, as it does those of providers."""
    kind = tool.get("type")
    try:
        if not is_responses:
            read = chat_tools if kind == "custom" or "function" in tool else messages_tools
            return read([tool]).functions or []
        if kind == "custom":
            return [{"type": "function", "function": free_text(tool, "tools")["function"]}]
    except GatewayError:  # Of a protocol of a plugin.
        return []
    if kind != "function" or not isinstance(tool.get("name"), str):
        return []
    names = ("name", "description", "parameters")
    return [{"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}]


def _fault(messages: Sequence[Message], trained: Sequence[str]) -> str | None:
    """Why ``agentrl sft`` would refuse a conversation."""
    open_calls: set[str] = set()
    for message in messages:
        role = message["role"]
        if role not in _ROLES:
            return "it has a message of another role than the chat completions API knows"
        if not isinstance(message["content"], str):
            return "it has contents that are no text"
        if role == "tool":
            if message.get("tool_call_id") not in open_calls:
                return "it has a result of no tool call"
            open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            return "it has a tool call without a result"
        calls = message.get("tool_calls", ())
        if not all(call["id"] and call["function"]["name"] and _is_object(call) for call in calls):
            return "it has a tool call whose arguments are no JSON object"
        if role == "assistant" and not calls and not message["content"].rpartition("</think>")[2].strip():
            return "it has an answer that says nothing"
        open_calls = {call["id"] for call in calls}
    return None if trained else "its answers were cut at their limit of tokens"


def _is_object(call: Mapping[str, Any]) -> bool:
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except (ValueError, RecursionError):
        return False
