"""Requests of the Messages API, read strictly: what could not be honoured is refused or counted, never dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.contract import ModelRequest, WireRequest, new_call_id
from agentrl.gateway.dialects.fields import SAMPLING_FIELDS, read_model, read_template_kwargs
from agentrl.gateway.dialects.messages.blocks import Conversation
from agentrl.gateway.dialects.messages.tools import read_choice, read_tools
from agentrl.gateway.dialects.overrides import STRICT
from agentrl.gateway.dialects.refusals import flag, unknown, unsupported, wrong
from agentrl.gateway.dialects.schemas import check_schema
from agentrl.inference.contract import Grammar

__all__ = ["CANNOT_BE_MET", "EFFORTS", "FIELDS", "NO_EFFECT", "THINKING", "read_request", "tells_thinking"]

_READ = frozenset(
    {
        "chat_template_kwargs",
        "context_management",
        "messages",
        "model",
        "output_config",
        "output_format",
        "stop_sequences",
        "stream",
        "system",
        "thinking",
        "tool_choice",
        "tools",
    }
)
NO_EFFECT = frozenset(
    {
        "betas",
        "billing_policy",
        "cache_control",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
"""Fields about accounts, caches and speed, which change nothing in what is sampled."""
CANNOT_BE_MET = frozenset({"compaction", "container", "mcp_servers"})
"""Fields for what the API's servers would do beside the model. They are counted where they ask for something."""
FIELDS = (SAMPLING_FIELDS - {"stop"}) | _READ | NO_EFFECT | CANNOT_BE_MET
"""The fields of a request that are known here. Fields of the chat completions API that say how to sample are taken too:
``rollout.override`` may set them."""

EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING = ("enabled", "adaptive", "disabled", "between_tools")
"""The types of the field ``thinking``."""
_KEEPS_ALL = ("all", {"type": "all"})


def read_request(request: WireRequest, *, counts: bool = False) -> ModelRequest:
    """The request for one completion. Raises ``GatewayError`` (400), naming the field at fault.

    ``counts`` says that only its prompt is of interest.
    """
    given = {name: value for name, value in request.body.items() if value is not None}
    for name in sorted(given.keys() - FIELDS):
        raise unknown(name, given[name], FIELDS)
    read_model(given)
    conversation = Conversation(request.thinking, request.memory)
    conversation.add_system(given.get("system"))
    conversation.add_messages(given.get("messages"))
    if not counts:
        _check_end(conversation)
    tools, one_call = read_choice(given.get("tool_choice"), read_tools(given.get("tools")))
    preferences, unmet = _preferences(given)
    unmet |= conversation.unmet | {*tools.unmet} | {name for name in CANNOT_BE_MET if given.get(name)}
    return ModelRequest(
        body=request.body,
        messages=conversation.messages,
        tools=tools.functions,
        calls_tools=tools.calls,
        one_call=one_call,
        must_call=tools.must_call,
        grammar=_grammar(given),
        fields=_fields(given, needs_limit=not counts and "max_tokens" not in request.settings.override),
        template_kwargs=read_template_kwargs(given),
        preferences=preferences,
        unmet=((STRICT,) if tools.strict else ()) + tuple(sorted(unmet)),
        stream=flag(given, "stream"),
        call_id=new_call_id("msg_"),
    )


def tells_thinking(body: Mapping[str, Any]) -> bool:
    """Whether an answer holds the text of its thinking, or only the signature that stands for it."""
    thinking = body.get("thinking")
    return not isinstance(thinking, dict) or thinking.get("display") != "omitted"


def _check_end(conversation: Conversation) -> None:
    if conversation.messages[-1]["role"] == "assistant":
        raise wrong(
            "messages",
            "ends with a message of the assistant, and a turn that was begun cannot be continued",
            fix="end with a message of the user",
            code="unsupported_value",
        )


def _fields(given: Mapping[str, Any], *, needs_limit: bool) -> dict[str, Any]:
    if needs_limit and "max_tokens" not in given:
        raise wrong("max_tokens", "is missing", fix="say how many tokens the answer may have")
    fields = {name: given[name] for name in sorted(SAMPLING_FIELDS & given.keys())}
    if "stop_sequences" in given:
        stop = given["stop_sequences"]
        if not isinstance(stop, list) or not all(isinstance(each, str) and each for each in stop):
            raise unsupported("stop_sequences", stop, "is not a list of texts")
        fields |= {"stop": stop} if stop else {}
    return fields


def _grammar(given: Mapping[str, Any]) -> Grammar | None:
    """The form that the answer must have; the field has two names."""
    value, where = given.get("output_format"), "output_format"
    if value is None:
        value, where = _config(given).get("format"), "output_config.format"
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        return Grammar("json_object")
    if kind != "json_schema":
        fix = "json_schema, with a schema; or set rollout.override: {response_format: null}"
        raise unsupported(where, value, "is no form of an answer", fix=fix)
    check_schema(value.get("schema"), f"{where}.schema")
    return Grammar("json_schema", json.dumps(value["schema"], ensure_ascii=False))


def _preferences(given: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The variables that the chat template may read, and what can be granted in no case."""
    preferences: dict[str, Any] = {}
    unmet: set[str] = set()
    config = _config(given)
    if (effort := config.get("effort")) is not None:
        if effort not in EFFORTS:
            raise unsupported("output_config.effort", effort, f"is none of {', '.join(EFFORTS)}")
        preferences["reasoning_effort"] = effort
    if config.get("task_budget"):
        unmet.add("output_config.task_budget")
    thinking = given.get("thinking", {"type": "adaptive"})
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind not in THINKING:
        raise unsupported("thinking", thinking, "is no way of thinking", fix=f"one of {', '.join(THINKING)}")
    if kind in ("enabled", "disabled"):
        preferences["enable_thinking"] = kind == "enabled"
    if kind == "enabled" and thinking.get("budget_tokens") is not None:
        _check_budget(thinking["budget_tokens"])
        unmet.add("thinking.budget_tokens")
    if kind == "between_tools":
        unmet.add("thinking")
    if _edits(given.get("context_management")):
        unmet.add("context_management")
    return preferences, unmet


def _check_budget(tokens: Any) -> None:
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise unsupported("thinking.budget_tokens", tokens, "is not a whole number of at least 1")


def _config(given: Mapping[str, Any]) -> Mapping[str, Any]:
    config = given.get("output_config", {})
    if not isinstance(config, dict):
        raise wrong("output_config", f"is not an object: {shown(config, 80)}")
    for name in sorted(config.keys() - {"effort", "format", "task_budget"}):
        raise unknown(f"output_config.{name}", config[name], frozenset())
    return config


def _edits(management: Any) -> bool:
    """Whether ``context_management`` asks for an edit of the history. One that keeps all thinking asks for none."""
    if management is None:
        return False
    edits = management.get("edits", []) if isinstance(management, dict) else None
    if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
        raise wrong("context_management", f"holds no list of edits: {shown(management, 80)}")
    return any(
        not str(edit.get("type")).startswith("clear_thinking_") or edit.get("keep") not in _KEEPS_ALL for edit in edits
    )
