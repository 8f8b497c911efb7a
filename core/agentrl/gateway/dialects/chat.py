"""The chat completions API: ``POST /v1/chat/completions``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from agentrl.errors import ConfigError, GatewayError, shown
from agentrl.gateway.dialects.chat_api import PATH, error_body, flag, refuse_several, refused
from agentrl.gateway.dialects.messages import read_messages, read_tools
from agentrl.gateway.dialects.overrides import STRICT, apply_override, check_override, misspelled
from agentrl.gateway.request import Completion, ModelRequest
from agentrl.tokens.vocabulary import Vocabulary

__all__ = ["SAMPLING_FIELDS", "ChatCompletions"]

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
"""Fields about accounts and caches, which sample nothing differently here."""

_KNOWN = SAMPLING_FIELDS | _READ | _NO_EFFECT
_MAX_TOP_LOGPROBS = 20
_IMPOSSIBLE = -9999.0
"""How the API writes the logprob of minus infinity, for which JSON has no number."""


class ChatCompletions:
    """Reads requests strictly: what could not be honoured is refused, never dropped."""

    path = PATH

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """See ``Dialect.override``."""
        return apply_override(body, override)

    @classmethod
    def check_override(cls, override: Mapping[str, Any]) -> None:
        """Raise ``ConfigError``, naming the key, for an override under which no call could be answered as asked."""
        if override.get(STRICT):
            raise ConfigError(
                f"rollout.override.{STRICT}={shown(override[STRICT], 80)} cannot be kept: "
                "no grammar constrains arguments",
                fix=f"set rollout.override.{STRICT}=false, or drop it",
            )
        check_override(override, _read, _KNOWN)

    def parse(self, body: Mapping[str, Any]) -> ModelRequest:
        """See ``Dialect.parse``."""
        return _read(body)

    def respond(self, request: ModelRequest, completion: Completion) -> bytes:
        """See ``Dialect.respond``."""
        call = completion.call
        logprobs = {"content": self._logprobs(completion), "refusal": None} if request.logprobs else None
        choice = {"index": 0, "message": call.message, "finish_reason": call.finish_reason, "logprobs": logprobs}
        usage = {
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
            "total_tokens": call.prompt_tokens + call.completion_tokens,
        }
        response = {
            "id": call.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": completion.model,
            "choices": [choice],
            "usage": usage,
        }
        return json.dumps(response).encode()

    def refuse(self, error: GatewayError) -> bytes:
        """See ``Dialect.refuse``."""
        return error_body(error)

    def _logprobs(self, completion: Completion) -> list[dict[str, Any]]:
        tops = completion.top_logprobs or ((),) * len(completion.ids)
        written: list[dict[str, Any]] = []
        before: int | None = None
        for token, logprob, top in zip(completion.ids, completion.logprobs, tops, strict=True):
            others = [self._logprob(other, value, before) for other, value in top]
            written.append(self._logprob(token, logprob, before) | {"top_logprobs": others})
            before = token
        return written

    def _logprob(self, token: int, logprob: float, before: int | None) -> dict[str, Any]:
        raw = self._vocabulary.piece(token, before)
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": max(logprob, _IMPOSSIBLE), "bytes": list(raw)}


def _read(body: Mapping[str, Any]) -> ModelRequest:
    given = {name: value for name, value in body.items() if value is not None}
    if unknown := given.keys() - _KNOWN:
        raise _refuse_unknown(min(unknown), given)
    _refuse_modes(given)
    tools, strict = read_tools(given.get("tools"))
    return ModelRequest(
        body=body,
        messages=read_messages(given.get("messages")),
        tools=tools,
        calls_tools=_calls_tools(given, tools),
        one_call=tools is not None and given.get("parallel_tool_calls") is False,
        fields=_fields(given),
        logprobs=flag(given, "logprobs"),
        top_logprobs=_top_logprobs(given),
        unmet=(STRICT,) if strict else (),
    )


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
        raise refused("model", given, "is not a text")
    refuse_several(given)
    if given.get("modalities", ["text"]) != ["text"]:
        fix = "the policy writes text only; have it with rollout.override: {modalities: null}"
        raise refused("modalities", given, "is not supported", fix=fix)
    form = given.get("response_format", {"type": "text"})
    if not isinstance(form, dict) or form.get("type") != "text":
        fix = "ask for the format in the messages, and drop the field with rollout.override: {response_format: null}"
        raise refused("response_format", given, "is not supported yet", fix=fix)


def _calls_tools(given: Mapping[str, Any], tools: list[dict[str, Any]] | None) -> bool:
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        fix = (
            "'auto' and 'none' are supported; leave the choice to the policy with rollout.override: {tool_choice: null}"
        )
        raise refused("tool_choice", given, "would have to force a call", fix=fix)
    flag(given, "parallel_tool_calls")
    return tools is not None and choice == "auto"


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: given[name] for name in sorted(SAMPLING_FIELDS & given.keys())}
    if "max_completion_tokens" in given:
        if fields.get("max_tokens", given["max_completion_tokens"]) != given["max_completion_tokens"]:
            raise refused(
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
        raise refused("top_logprobs", given, f"is not a whole number from 0 to {_MAX_TOP_LOGPROBS}")
    if count and not given.get("logprobs"):
        raise refused("top_logprobs", given, "is of no use without logprobs", fix="set logprobs: true")
    return count
