"""A request to the Responses API as a request to the policy."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.contract import ModelRequest, WireRequest, new_call_id
from agentrl.gateway.dialects.conversation import Message
from agentrl.gateway.dialects.fields import (
    NO_EFFECT,
    SAMPLING_FIELDS,
    read_model,
    read_preferences,
    read_template_kwargs,
    read_usage,
)
from agentrl.gateway.dialects.overrides import STRICT
from agentrl.gateway.dialects.refusals import flag, text, unknown, unsupported, whole, wrong
from agentrl.gateway.dialects.responses.items import Conversation
from agentrl.gateway.dialects.responses.store import Store
from agentrl.gateway.dialects.schemas import read_format
from agentrl.gateway.dialects.tools import FREE_FORM, Toolbox, a_function, free_text, read_choice, unkept

__all__ = ["ALSO_NO_EFFECT", "ENCRYPTED", "FIELDS", "INCLUDABLE", "LOGPROBS", "read_request", "summarised"]

ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
"""What ``include`` may ask for that can be served."""
INCLUDABLE = (
    ENCRYPTED,
    LOGPROBS,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""All that ``include`` may ask for. The rest is about items that no answer has here."""

_READ = frozenset(
    {
        "chat_template_kwargs",
        "context_management",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "model",
        "n",
        "parallel_tool_calls",
        "previous_response_id",
        "reasoning",
        "stream",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "truncation",
    }
)
ALSO_NO_EFFECT = frozenset({"access_programs", "background_options", "client_metadata", "image", "max_tool_calls"})
"""Fields about accounts, about images, and about tools that others run."""
_SAMPLING = SAMPLING_FIELDS - {"max_tokens"}
"""Some of these only other servers and ``rollout.override`` know."""
FIELDS = _READ | NO_EFFECT | ALSO_NO_EFFECT | _SAMPLING
"""The fields of a request that are known here."""
_REFUSED: Mapping[str, str] = {
    "background": "ask for the answer itself, streamed or not",
    "conversation": "send the history as input, or name the previous_response_id",
    "moderation": "nothing is moderated here; drop it, or set rollout.override: {moderation: null}",
    "prompt": "send its text as instructions",
}
"""Fields of the API that cannot be honoured, with what to do instead."""
_MAX_TOP_LOGPROBS = 20
_MOST_TOKENS = 2**31 - 1
_REASONING = frozenset({"effort", "summary", "generate_summary", "context", "mode"})
_TEXT = frozenset({"format", "verbosity"})
_ELSEWHERE = frozenset({"type", "format", "allowed_callers", "async", "defer_loading", "output_schema"})
"""What a tool says to hosts that look tools up or run them: here all are shown, and their caller runs them."""
_FUNCTION = ("name", "description", "parameters", "strict")


def read_request(request: WireRequest, store: Store) -> ModelRequest:
    """Read a request for a response. Raises ``GatewayError`` (400), naming the field at fault."""
    given = {name: value for name, value in request.body.items() if value is not None}
    if not given.keys() <= FIELDS:
        _refuse_fields(given)
    read_model(given)
    read_usage(given)
    whole(given, "n", 1, 1, 1)
    flag(given, "store")
    tools = read_choice(_choice(given.get("tool_choice")), _tools(given.get("tools")))
    several = "parallel_tool_calls" not in given or flag(given, "parallel_tool_calls")
    included, alternatives = _included(given), whole(given, "top_logprobs", 0, _MAX_TOP_LOGPROBS, 0)
    reasoning, texts = _object(given, "reasoning", _REASONING), _object(given, "text", _TEXT)
    conversation = _conversation(given, request, store)
    unmet = {*tools.unmet, *conversation.unmet, *_unmet(given, reasoning), *((STRICT,) if tools.strict else ())}
    return ModelRequest(
        body=request.body,
        messages=_messages(conversation),
        tools=tools.functions,
        calls_tools=tools.calls,
        one_call=tools.functions is not None and not several,
        must_call=tools.must_call,
        grammar=read_format(texts.get("format"), "text.format"),
        fields=_sampling(given),
        logprobs=LOGPROBS in included or alternatives > 0,
        top_logprobs=alternatives,
        template_kwargs=read_template_kwargs(given),
        preferences=read_preferences(
            {"reasoning_effort": reasoning.get("effort"), "verbosity": texts.get("verbosity")}
        ),
        unmet=tuple(sorted(unmet)),
        stream=flag(given, "stream"),
        call_id=new_call_id("resp_"),
    )


def summarised(body: Mapping[str, Any]) -> bool:
    """Whether a request that was read before asks for a summary of the thinking."""
    reasoning = body.get("reasoning") or {}
    return bool(reasoning.get("summary") or reasoning.get("generate_summary"))


def _refuse_fields(given: Mapping[str, Any]) -> None:
    """Raise ``GatewayError`` for the first field that is not known, unless it asks for nothing."""
    for name in sorted(given.keys() - FIELDS):
        if name not in _REFUSED:
            raise unknown(name, given[name], FIELDS)
        if given[name] is not False:
            raise unsupported(name, given[name], "cannot be honoured", fix=_REFUSED[name])


def _conversation(given: Mapping[str, Any], request: WireRequest, store: Store) -> Conversation:
    """The conversation so far: instructions, what a previous response knew and said, and the input."""
    conversation = Conversation(store.made, request.thinking, request.memory)
    if instructions := text(given, "instructions", ""):
        conversation.say("system", instructions)
    if previous := text(given, "previous_response_id", ""):
        for items in store.known(previous, "previous_response_id"):
            conversation.add(items, "previous_response_id")
    asked = given.get("input", [])
    if isinstance(asked, str):
        conversation.say("user", asked)
    elif isinstance(asked, list):
        conversation.add_input([store.referred(item, f"input[{index}]") for index, item in enumerate(asked)])
    else:
        raise wrong("input", f"is neither a text nor a list of items: {shown(asked, 80)}")
    return conversation


def _messages(conversation: Conversation) -> list[Message]:
    messages = conversation.end()
    if not messages:
        raise wrong("input", "holds no message", fix="send a text, or a list of items")
    return messages


def _tools(value: Any) -> Toolbox:
    """The ``tools`` of a request. Those that others would run are left out, and counted by their type."""
    if not value:
        return Toolbox()
    if not isinstance(value, list):
        raise wrong("tools", f"is not a list: {shown(value, 80)}")
    functions, custom, unmet = [], set(), set()
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str):
            raise wrong(f"{where}.type", "is missing", fix="'function' and 'custom' can be called")
        if kind not in ("function", "custom"):
            unmet.add(kind)
            continue
        said = {name: tool[name] for name in _FUNCTION if tool.get(name) is not None}
        if left := [name for name in tool if name not in (*_FUNCTION, *_ELSEWHERE) and tool[name] is not None]:
            raise wrong(f"{where}.{left[0]}", "is not a field of a tool", fix="drop it", code="unknown_parameter")
        if kind == "function":
            functions.append(a_function({"type": "function", "function": said}, where))
            continue
        functions.append(free_text(tool, where))
        custom.add(tool["name"])
        if unkept(tool):
            unmet.add(FREE_FORM)
    strict = any(tool["function"].get("strict") for tool in functions)
    return Toolbox(functions or None, frozenset(custom), strict, bool(functions), unmet=tuple(unmet))


def _choice(value: Any) -> Any:
    """A ``tool_choice`` without the tools in it that others would run."""
    if not isinstance(value, dict) or value.get("type") != "allowed_tools" or not isinstance(value.get("tools"), list):
        return value
    left = [tool for tool in value["tools"] if not isinstance(tool, dict) or tool.get("type") in ("function", "custom")]
    return {**value, "tools": left}


def _included(given: Mapping[str, Any]) -> frozenset[str]:
    value = given.get("include", [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise unsupported("include", value, "is not a list of texts")
    for each in value:
        if each not in INCLUDABLE:
            raise wrong("include", f"has {shown(each, 80)}", fix=f"there are {', '.join(INCLUDABLE)}")
    return frozenset(value)


def _object(given: Mapping[str, Any], name: str, fields: Set[str]) -> dict[str, Any]:
    """A field that is an object with some of ``fields``, without those that are null."""
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise unsupported(name, value, "is not an object")
    said = {field: each for field, each in value.items() if each is not None}
    if others := said.keys() - fields:
        raise unknown(f"{name}.{min(others)}", said[min(others)], {f"{name}.{field}" for field in fields})
    return said


def _unmet(given: Mapping[str, Any], reasoning: Mapping[str, Any]) -> set[str]:
    """What the request wishes and is answered without."""
    wishes = {
        "reasoning.context": reasoning.get("context", "auto") != "auto",
        "reasoning.mode": reasoning.get("mode", "standard") != "standard",
        "truncation": given.get("truncation", "disabled") != "disabled",
        "context_management": bool(given.get("context_management")),
    }
    return {name for name, wished in wishes.items() if wished}


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: given[name] for name in sorted(_SAMPLING & given.keys())}
    if "max_output_tokens" in given:
        fields["max_tokens"] = whole(given, "max_output_tokens", 1, _MOST_TOKENS, 1)
    return fields
