"""The chat completions API: ``POST /v1/chat/completions``, and the models in the form that its clients read.

Requests are read strictly: what could not be honoured is refused, never dropped. Where they are passed on to an
endpoint of the same API, only what recording needs is read, and the endpoint judges the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrl.errors import ConfigError, GatewayError, shown
from agentrl.gateway.contract import (
    CallDelta,
    Completion,
    Delta,
    Event,
    ModelRequest,
    Reply,
    Route,
    WireRequest,
)
from agentrl.gateway.dialects.overrides import STRICT, apply_override, check_override, misspelled
from agentrl.gateway.dialects.writing import logprobs_of, openai_error, server_event, written

__all__ = ["SAMPLING_FIELDS", "ChatCompletions"]

Message = dict[str, Any]

SAMPLING_FIELDS = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "max_tokens",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
    }
)
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
    }
)
_NO_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
"""Fields about accounts and caches, which change nothing in what is sampled."""

_KNOWN = SAMPLING_FIELDS | _READ | _NO_EFFECT
_MAX_TOP_LOGPROBS = 20
_MOST_CHOICES = 128


_ROLES = ("system", "developer", "user", "assistant", "tool")
_SPEAKERS = ("user", "assistant", "system", "developer")
_MESSAGE_FIELDS = {
    "assistant": frozenset({"role", "content", "name", "tool_calls", "reasoning_content", "reasoning"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
_ANY_MESSAGE_FIELDS = frozenset({"role", "content", "name"})
_NOTES = frozenset({"provider_specific_fields", "parsed", "annotations", "cache_control"})
"""What SDKs add to a message about its origin, parsing or caching; none of it is for the model to read."""
_THINKING_AGAIN = frozenset({"thinking_blocks", "reasoning_details"})
"""Other forms of the thinking in ``reasoning_content``, which some SDKs send beside it."""

_COMPLETIONS = Route("/chat/completions")
_MODELS = Route("/models", ("GET",))
_MODEL = Route("/models/{name:path}", ("GET",))


class ChatCompletions:
    """The dialect of the chat completions API."""

    routes = (_COMPLETIONS, _MODELS, _MODEL)

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Apply ``rollout.override``; see ``Dialect.override``."""
        return apply_override(body, override)

    @staticmethod
    def check_override(override: Mapping[str, Any], *, relayed: bool = False) -> None:
        """Raise ``ConfigError``, naming the key, for an override under which every call would be refused.

        ``relayed`` says that requests are passed on to an endpoint, which may know any field.
        """
        if relayed:
            check_override(override, _read_relayed)
            return
        if override.get(STRICT):
            raise ConfigError(
                f"rollout.override.{STRICT}={shown(override[STRICT], 80)} cannot be kept: "
                "no grammar constrains arguments",
                fix=f"set rollout.override.{STRICT}=false, or drop it",
            )
        check_override(override, _read, _KNOWN)

    def parse(self, request: WireRequest) -> Sequence[ModelRequest] | Reply:
        """Read a request for completions, or answer one about models; see ``Dialect.parse``.

        Any model name is the policy, so that every model that is asked for exists, and the list holds the session's.
        """
        if request.route is _COMPLETIONS:
            return _read_relayed(request.body) if request.relayed else _read(request.body)
        if request.route is _MODEL:
            return Reply(200, written(_model(request.parameters["name"])))
        return Reply(200, written({"object": "list", "data": [_model(request.settings.model)]}))

    def respond(self, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]) -> Reply:
        """Write a completion; see ``Dialect.respond``.

        The answer of an endpoint is passed back whole, but under the id that the call has here: an endpoint's ids need
        not be unique, and agents reward single calls by them.
        """
        first = completions[0]
        if first.answer is not None and len(completions) == 1:
            return Reply(200, json.dumps({**first.answer, "id": first.call.id}).encode())
        choices = [
            {
                "index": index,
                "message": each.call.message,
                "finish_reason": each.call.finish_reason,
                "logprobs": {"content": logprobs_of(each.tokens), "refusal": None} if asked[0].logprobs else None,
            }
            for index, each in enumerate(completions)
        ]
        response = {
            "id": first.call.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": first.model,
            "choices": choices,
            "usage": _usage(completions),
        }
        return Reply(200, written(response))

    def stream(self, request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]) -> Reply:
        """Write chunks of a completion as server-sent events; see ``Dialect.stream``."""
        return Reply(200, _chunks(request, asked, events), {"content-type": "text/event-stream"})

    def refuse(self, error: GatewayError) -> Reply:
        """Write an error; see ``Dialect.refuse``."""
        return Reply(error.status, written({"error": openai_error(error)}))


def _usage(completions: Sequence[Completion]) -> dict[str, Any]:
    prompt = completions[0].call.prompt_tokens
    sampled = sum(each.call.completion_tokens for each in completions)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


async def _chunks(
    request: WireRequest, asked: Sequence[ModelRequest], events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    """The chunks of a streamed completion, one for each event, and at the end its usage if it was asked for."""
    options = request.body.get("stream_options") or {}
    usage = bool(options.get("include_usage"))
    head = {
        "id": asked[0].call_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": request.settings.model,
    }
    begun: set[int] = set()
    completions: list[Completion] = []
    try:
        async for event in events:
            if isinstance(event, Completion):
                completions.append(event)
                choice = _choice(event.choice, {}, None, event.call.finish_reason)
                part = server_event({**head, "choices": [choice]} | ({"usage": None} if usage else {}))
                if len(completions) < len(asked):
                    yield part
                    continue
                if usage:
                    part += server_event({**head, "choices": [], "usage": _usage(completions)})
                yield part + b"data: [DONE]\n\n"
                return
            logprobs = {"content": logprobs_of(event.tokens), "refusal": None} if event.tokens.ids else None
            delta = _delta(event) if event.choice in begun else {"role": "assistant", "content": "", **_delta(event)}
            begun.add(event.choice)
            if delta or logprobs:
                choice = _choice(event.choice, delta, logprobs, None)
                yield server_event({**head, "choices": [choice]} | ({"usage": None} if usage else {}))
    except GatewayError as error:
        yield server_event({"error": openai_error(error)})


def _choice(index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _delta(event: Delta) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if event.reasoning:
        delta["reasoning_content"] = event.reasoning
    if event.content:
        delta["content"] = event.content
    if event.calls:
        delta["tool_calls"] = [_call(call) for call in event.calls]
    return delta


def _call(call: CallDelta) -> dict[str, Any]:
    if not call.name:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "agentrl"}


def _choices(asked: ModelRequest, body: Mapping[str, Any]) -> list[ModelRequest]:
    """One request for each choice of the answer. The calls after the first have its id and their number."""
    count = body.get("n")
    if count is None or count == 1:
        return [asked]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_CHOICES:
        fix = "have one answer with rollout.override: {n: null}"
        raise _refused("n", body, f"is not a whole number from 1 to {_MOST_CHOICES}", fix=fix)
    return [asked, *(replace(asked, call_id=f"{asked.call_id}-{number}") for number in range(1, count))]


def _read_relayed(body: Mapping[str, Any]) -> list[ModelRequest]:
    """A request that is passed on as it is."""
    stream = _flag({name: value for name, value in body.items() if value is not None}, "stream")
    messages, tools = body.get("messages"), body.get("tools")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise GatewayError(
            f"messages is not a list of messages: {shown(messages, 80)}", param="messages", code="invalid_value"
        )
    relay = {name: value for name, value in body.items() if name not in ("stream", "stream_options", "n")}
    asked = ModelRequest(body, messages, tools if isinstance(tools, list) else None, stream=stream, relay=relay)
    return _choices(asked, body)


def _read(body: Mapping[str, Any]) -> list[ModelRequest]:
    given = {name: value for name, value in body.items() if value is not None}
    if unknown := given.keys() - _KNOWN:
        raise _refuse_unknown(min(unknown), given)
    _refuse_modes(given)
    tools, strict = _tools(given.get("tools"))
    asked = ModelRequest(
        body=body,
        messages=_messages(given.get("messages")),
        tools=tools,
        calls_tools=_calls_tools(given, tools),
        one_call=tools is not None and given.get("parallel_tool_calls") is False,
        fields=_fields(given),
        logprobs=_flag(given, "logprobs"),
        top_logprobs=_top_logprobs(given),
        unmet=(STRICT,) if strict else (),
        stream=_flag(given, "stream"),
    )
    return _choices(asked, given)


def _refuse_unknown(name: str, given: Mapping[str, Any]) -> GatewayError:
    near = misspelled(name, _KNOWN)
    return GatewayError(
        f"{name}={shown(given[name], 80)} is not a field that can be honoured here",
        param=name,
        code="unknown_parameter",
        fix=f"did you mean {near!r}?" if near else f"drop it, or set rollout.override: {{{name}: null}}",
    )


def _refuse_modes(given: Mapping[str, Any]) -> None:
    """Refuse ways of answering that do not exist here."""
    if not isinstance(given.get("model", ""), str):
        raise _refused("model", given, "is not a text")
    if given.get("modalities", ["text"]) != ["text"]:
        fix = "the policy writes text only; have it with rollout.override: {modalities: null}"
        raise _refused("modalities", given, "is not supported", fix=fix)
    form = given.get("response_format", {"type": "text"})
    if not isinstance(form, dict) or form.get("type") != "text":
        fix = "ask for the format in the messages, and drop the field with rollout.override: {response_format: null}"
        raise _refused("response_format", given, "is not supported yet", fix=fix)


def _calls_tools(given: Mapping[str, Any], tools: list[dict[str, Any]] | None) -> bool:
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        fix = (
            "'auto' and 'none' are supported; leave the choice to the policy with rollout.override: {tool_choice: null}"
        )
        raise _refused("tool_choice", given, "would have to force a call", fix=fix)
    _flag(given, "parallel_tool_calls")
    return tools is not None and choice == "auto"


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: given[name] for name in sorted(SAMPLING_FIELDS & given.keys())}
    if "max_completion_tokens" in given:
        if fields.get("max_tokens", given["max_completion_tokens"]) != given["max_completion_tokens"]:
            raise _refused(
                "max_tokens",
                given,
                "contradicts max_completion_tokens",
                fix="set one of them, or drop both with rollout.override: {max_tokens: null}",
            )
        fields["max_tokens"] = given["max_completion_tokens"]
    return fields


def _top_logprobs(given: Mapping[str, Any]) -> int:
    count = given.get("top_logprobs", 0)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MAX_TOP_LOGPROBS:
        raise _refused("top_logprobs", given, f"is not a whole number from 0 to {_MAX_TOP_LOGPROBS}")
    if count and not given.get("logprobs"):
        raise _refused("top_logprobs", given, "is of no use without logprobs", fix="set logprobs: true")
    return count


def _flag(given: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false, and false where it is not given."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise _refused(name, given, "is neither true nor false")
    return value


def _refused(name: str, given: Mapping[str, Any], what: str, *, fix: str | None = None) -> GatewayError:
    return GatewayError(f"{name}={shown(given[name], 80)} {what}", param=name, code="unsupported_value", fix=fix)


def _messages(value: Any) -> list[Message]:
    """The ``messages`` of a request, plain. Raises ``GatewayError`` (400), naming the message at fault."""
    if not isinstance(value, list) or not value:
        raise _wrong("messages", f"is not a list of at least one message: {shown(value, 80)}")
    return [
        dict(message) if _is_text(message) else _message(message, f"messages[{index}]")
        for index, message in enumerate(value)
    ]


def _is_text(message: Any) -> bool:
    """Whether a message is a role and a text, as most are, in which there is nothing to check or to change."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in _SPEAKERS
    )


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise _wrong(where, f"is not an object: {shown(value, 80)}")
    role = value.get("role")
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"is {role!r}", fix="one of " + ", ".join(_ROLES))
    message: Message = {name: given for name, given in value.items() if given is not None}
    if unknown := message.keys() - _MESSAGE_FIELDS.get(role, _ANY_MESSAGE_FIELDS):
        _unknown(role, message, unknown, where)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    elif content is None:
        if role != "assistant":
            raise _wrong(f"{where}.content", "is missing")
    elif not isinstance(content, str):
        raise _wrong(f"{where}.content", f"is neither a text nor a list of parts: {shown(content, 80)}")
    if role == "assistant":
        _assistant(message, where)
    return message


def _unknown(role: str, message: Message, unknown: set[str], where: str) -> None:
    """Remove fields in which an SDK tells the model nothing, and refuse all others."""
    again = _THINKING_AGAIN if message.get("reasoning_content") or message.get("reasoning") else frozenset()
    for name in sorted(unknown):
        if name in _NOTES or name in again or _says_nothing(message[name]):
            del message[name]
        else:
            raise _wrong(
                f"{where}.{name}", f"cannot be used in a {role} message", fix="drop it", code="unknown_parameter"
            )


def _says_nothing(value: Any) -> bool:
    """Whether a value is empty, or holds nothing but empty ones."""
    if isinstance(value, dict):
        return all(map(_says_nothing, value.values()))
    return all(map(_says_nothing, value)) if isinstance(value, list) else value in (None, "")


def _part(part: Any, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return {"type": "text", "text": part[kind]}
    raise _wrong(
        where,
        f"is not text but {shown(kind or part, 80)}",
        fix="the policy reads text only",
        code="unsupported_content",
    )


def _assistant(message: Message, where: str) -> None:
    reasoning = message.pop("reasoning", None)
    if reasoning and "reasoning_content" not in message:
        message["reasoning_content"] = reasoning
    if not isinstance(message.get("reasoning_content", ""), str):
        raise _wrong(f"{where}.reasoning_content", "is not a text")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise _wrong(f"{where}.tool_calls", f"is not a list: {shown(calls, 80)}")
    message["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    if not calls:
        del message["tool_calls"]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """A tool call without what SDKs add to it, such as its index or its parsed arguments."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise _wrong(where, "is not a call of a function")
    for name in ("name", "arguments"):
        if not isinstance(function.get(name), str):
            raise _wrong(f"{where}.function.{name}", f"is not a text: {shown(function.get(name), 80)}")
    said = {"type": "function", "function": {name: function[name] for name in ("name", "arguments")}}
    return {"id": call["id"], **said} if call.get("id") is not None else said


def _tools(value: Any) -> tuple[list[dict[str, Any]] | None, bool]:
    """The ``tools`` of a request, plain, and whether any is strict. Raises ``GatewayError`` (400) naming the tool."""
    if not value:
        return None, False
    if not isinstance(value, list):
        raise _wrong("tools", f"is not a list: {shown(value, 80)}")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise _wrong(f"tools[{index}]", "is not a function", fix="the policy calls functions only")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise _wrong(f"tools[{index}].function.name", "is missing")
        if not isinstance(function.get("strict"), bool | None):
            raise _wrong(
                f"tools[{index}].function.strict", f"is neither true nor false: {shown(function['strict'], 80)}"
            )
    return [_plain(tool) for tool in value], any(tool["function"].get("strict") for tool in value)


def _plain(tool: dict[str, Any]) -> dict[str, Any]:
    """``tool`` without ``strict: false``, which is the default, and which templates would show to the policy."""
    function = {name: given for name, given in tool["function"].items() if name != "strict" or given}
    return {**tool, "function": function}


def _wrong(where: str, what: str, *, fix: str | None = None, code: str = "invalid_value") -> GatewayError:
    return GatewayError(f"{where} {what}", param=where, code=code, fix=fix)
