"""Requests for chat completions, read strictly: what could not be honoured is refused, never dropped."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.gateway.contract import ModelRequest
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
from agentrl.gateway.dialects.overrides import STRICT
from agentrl.gateway.dialects.refusals import flag, unknown, unsupported, whole
from agentrl.gateway.dialects.schemas import read_format
from agentrl.gateway.dialects.tools import Toolbox, read_choice, read_tools

__all__ = ["FIELDS", "read_relayed", "read_request"]

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
