"""The chat completions API: ``POST /v1/chat/completions``.

Requests are read strictly: what could not be honoured is refused, never dropped. Where they are passed on to an
endpoint of the same API, only what recording needs is read, and the endpoint judges the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.gateway.contract import (
    CallDelta,
    Completion,
    Delta,
    Event,
    ModelRequest,
    Reply,
    Route,
    Tokens,
    WireRequest,
)
from agentrl.gateway.dialects.chat_schema import DESCRIPTION
from agentrl.gateway.dialects.conversation import read_messages
from agentrl.gateway.dialects.fields import (
    NO_EFFECT,
    SAMPLING_FIELDS,
    choices,
    read_model,
    read_preferences,
    read_sampling,
    read_template_kwargs,
    read_usage,
)
from agentrl.gateway.dialects.overrides import STRICT, apply_override, check_override
from agentrl.gateway.dialects.refusals import flag, unknown, unsupported, whole
from agentrl.gateway.dialects.schemas import read_format
from agentrl.gateway.dialects.tools import Toolbox, custom_answer, custom_names, read_choice, read_tools
from agentrl.gateway.dialects.writing import (
    EVENT_STREAM,
    listed_logprobs,
    openai_error,
    openai_refusal,
    server_event,
    usage_of,
    written,
)

__all__ = ["FIELDS", "ChatCompletions", "read_relayed", "read_request"]

_READ = frozenset(
    {
        "messages",
        "model",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "n",
        "stream",
        "stream_options",
        "response_format",
        "modalities",
        "reasoning_effort",
        "verbosity",
        "chat_template_kwargs",
    }
)
FIELDS = SAMPLING_FIELDS | _READ | NO_EFFECT
"""The fields of a request that are known here."""
_REFUSED = {
    "functions": "send tools; calls then come as tool_calls",
    "function_call": "send tool_choice",
    "audio": "the policy writes text only; drop it, or set rollout.override: {audio: null}",
    "web_search_options": "give the policy a search tool; drop it, or set rollout.override: {web_search_options: null}",
    "moderation": "nothing is moderated here; drop it, or set rollout.override: {moderation: null}",
}
"""Fields of the API that cannot be honoured, with what to do instead."""
_MAX_TOP_LOGPROBS = 20


class ChatCompletions:
    """The dialect of the chat completions API."""

    routes = (Route("/chat/completions"),)

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Apply ``rollout.override``; see ``Dialect.override``."""
        return apply_override(body, override)

    @staticmethod
    def check_override(override: Mapping[str, Any], *, relayed: bool = False) -> None:
        """Raise ``ConfigError``, naming the key, for an override under which every call would be refused.

        ``relayed`` says that requests are passed on to an endpoint, which may know any field.
        """
        if relayed:
            check_override(override, read_relayed)
        else:
            check_override(override, read_request, FIELDS)

    def parse(self, request: WireRequest) -> Sequence[ModelRequest]:
        """Read a request for completions; see ``Dialect.parse``."""
        return read_relayed(request.body) if request.relayed else read_request(request.body, request.memory)

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        """Write a completion; see ``Dialect.respond``.

        The answer of an endpoint is passed back whole, but under the id that the call has here: an endpoint's ids need
        not be unique, and agents reward single calls by them.
        """
        first = completions[0]
        if first.answer is not None and len(completions) == 1:
            return Reply(200, json.dumps({**first.answer, "id": first.call.id}).encode())
        custom = custom_names(request.body["tools"]) if request.body.get("tools") else frozenset[str]()
        response = {
            "id": first.call.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": first.model,
            "choices": [
                {
                    "index": index,
                    "message": _message(each.call.message, custom, request.memory),
                    "finish_reason": each.call.finish_reason,
                    "logprobs": _listed(each.tokens) if asked[0].logprobs else None,
                }
                for index, each in enumerate(completions)
            ],
            "usage": usage_of(completions),
        }
        return Reply(200, written(response))

    def stream(self, request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]) -> Reply:
        """Write chunks of a completion as server-sent events; see ``Dialect.stream``."""
        return Reply(200, _chunks(request, asked, events), EVENT_STREAM)

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error; see ``Dialect.refuse``."""
        return openai_refusal(error)

    def describe(self) -> Mapping[str, Any]:
        """Say what is served; see ``Described.describe``."""
        return DESCRIPTION


def _message(message: Mapping[str, Any], custom: frozenset[str], memory: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """An answer as its client reads it: calls of ``custom`` tools have a type of their own."""
    if not custom or not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_answered(call, custom, memory) for call in message["tool_calls"]]}


def _answered(call: Mapping[str, Any], custom: frozenset[str], memory: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A call as its client reads it. An endpoint's own call of a custom tool has its type already."""
    return custom_answer(call, memory) if call.get("function", {}).get("name") in custom else call


async def _chunks(
    request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    """The chunks of a streamed completion, one for each event, and at the end its usage if it was asked for."""
    options = request.body.get("stream_options")  # Which an endpoint may have judged, and not this dialect.
    counted = isinstance(options, dict) and options.get("include_usage") is True
    custom = custom_names(request.body.get("tools"))
    head = {
        "id": asked[0].call_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": request.settings.model,
    }
    tail = {"usage": None} if counted else {}
    writers = [_DeltaWriter(custom, request.memory) for _ in asked]
    completions: list[Completion] = []
    try:
        async for happened in events:
            if isinstance(happened, Completion):
                completions.append(happened)
                last = writers[happened.choice].last(happened)
                choice = _choice(happened.choice, last, None, happened.call.finish_reason)
                part = server_event({**head, "choices": [choice], **tail})
                if len(completions) < len(asked):
                    yield part
                    continue
                if counted:
                    part += server_event({**head, "choices": [], "usage": usage_of(completions)})
                yield part + b"data: [DONE]\n\n"
                return
            tokens = happened.tokens
            told = _listed(tokens) if tokens.ids else None
            delta = writers[happened.choice].next(happened)
            if delta or told:
                yield server_event({**head, "choices": [_choice(happened.choice, delta, told, None)], **tail})
    except GatewayError as error:
        yield server_event({"error": openai_error(error)})


def _choice(index: int, delta: dict[str, Any], told: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish_reason}


class _DeltaWriter:
    """Writes the deltas of one choice. A call of a custom tool is written whole, when all of it is there."""

    def __init__(self, custom: frozenset[str], memory: MutableMapping[str, Any]) -> None:
        self._custom, self._memory = custom, memory
        self._held: set[int] = set()
        self._begun = False

    def next(self, delta: Delta) -> dict[str, Any]:
        """What a delta adds to the message."""
        out: dict[str, Any] = {} if self._begun else {"role": "assistant", "content": ""}
        self._begun = True
        if delta.reasoning:
            out["reasoning_content"] = delta.reasoning
        if delta.content:
            out["content"] = delta.content
        # A call without a name is an endpoint's own call of a custom tool.
        self._held.update(
            call.index for call in delta.calls if call.name in self._custom or (call.id and not call.name)
        )
        if calls := [_call(call) for call in delta.calls if call.index not in self._held]:
            out["tool_calls"] = calls
        return out

    def last(self, completion: Completion) -> dict[str, Any]:
        """What the end of the completion adds."""
        if not self._held:
            return {}
        calls = completion.call.message["tool_calls"]
        held = [{"index": n, **_answered(calls[n], self._custom, self._memory)} for n in sorted(self._held)]
        return {"tool_calls": held}


def _call(call: CallDelta) -> dict[str, Any]:
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _listed(tokens: Tokens) -> dict[str, Any]:
    return {"content": listed_logprobs(tokens), "refusal": None}


def read_relayed(body: Mapping[str, Any]) -> list[ModelRequest]:
    """A request that is passed on as it is: an endpoint of the same API judges its fields."""
    stream = flag(body, "stream")
    messages, tools = body.get("messages"), body.get("tools")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise GatewayError(
            f"messages is not a list of messages: {shown(messages, 80)}", param="messages", code="invalid_value"
        )
    relay = {name: value for name, value in body.items() if name not in ("stream", "stream_options", "n")}
    asked = ModelRequest(body, messages, tools if isinstance(tools, list) else None, stream=stream, relay=relay)
    return choices(asked, body.get("n"))


def read_request(body: Mapping[str, Any], memory: MutableMapping[str, Any] | None = None) -> list[ModelRequest]:
    """One request for each choice. Raises ``GatewayError`` (400), naming the field at fault.

    ``memory`` is what the dialect keeps in the session.
    """
    given = {name: value for name, value in body.items() if value is not None}
    if not given.keys() <= FIELDS:
        _refuse_fields(given)
    read_model(given)
    read_usage(given)
    if given.get("modalities", ["text"]) != ["text"]:
        fix = "the policy writes text only; have it with rollout.override: {modalities: null}"
        raise unsupported("modalities", given["modalities"], "is not supported", fix=fix)
    tools = Toolbox()
    if "tools" in given or "tool_choice" in given:
        tools = read_choice(given.get("tool_choice"), read_tools(given.get("tools")))
    several = "parallel_tool_calls" not in given or flag(given, "parallel_tool_calls")
    asked = ModelRequest(
        body=body,
        messages=read_messages(given.get("messages"), memory),
        tools=tools.functions,
        calls_tools=tools.calls,
        one_call=tools.functions is not None and not several,
        must_call=tools.must_call,
        grammar=read_format(given["response_format"]) if "response_format" in given else None,
        fields=read_sampling(given),
        logprobs=flag(given, "logprobs"),
        top_logprobs=_top_logprobs(given),
        template_kwargs=read_template_kwargs(given),
        preferences=read_preferences(given),
        unmet=((STRICT,) if tools.strict else ()) + tools.unmet,
        stream=flag(given, "stream"),
    )
    return choices(asked, given.get("n"))


def _refuse_fields(given: Mapping[str, Any]) -> None:
    """Raise ``GatewayError`` for the first field that is not known, unless it asks for nothing."""
    for name in sorted(given.keys() - FIELDS):
        if name in _REFUSED:
            if given[name] in ([], {}):
                continue
            raise unsupported(name, given[name], "cannot be honoured", fix=_REFUSED[name])
        raise unknown(name, given[name], FIELDS)


def _top_logprobs(given: Mapping[str, Any]) -> int:
    count = whole(given, "top_logprobs", 0, _MAX_TOP_LOGPROBS, 0)
    if count and not given.get("logprobs"):
        raise unsupported("top_logprobs", count, "is of no use without logprobs", fix="set logprobs: true")
    return count
