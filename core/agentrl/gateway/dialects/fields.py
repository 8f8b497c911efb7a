"""The fields by which requests of the OpenAI APIs say how to sample and how to answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.contract import ModelRequest
from agentrl.gateway.dialects.refusals import flag, unsupported, whole, wrong

__all__ = [
    "LEVELS",
    "MOST_CHOICES",
    "NO_EFFECT",
    "SAMPLING_FIELDS",
    "choice_count",
    "choices",
    "numbered",
    "read_model",
    "read_preferences",
    "read_sampling",
    "read_template_kwargs",
    "read_usage",
]

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
NO_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
"""Fields about accounts, caches and speed, which change nothing in what is sampled."""

MOST_CHOICES = 128
_STREAM_OPTIONS = ("include_usage", "include_obfuscation")
LEVELS = {
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "verbosity": ("low", "medium", "high"),
}
_USUAL = {"verbosity": "medium"}
"""Levels that ask for nothing."""


def read_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a request, unchecked except that the two names of the token limit agree."""
    fields = {name: given[name] for name in sorted(SAMPLING_FIELDS & given.keys())}
    if "max_completion_tokens" in given:
        if fields.get("max_tokens", given["max_completion_tokens"]) != given["max_completion_tokens"]:
            raise unsupported(
                "max_tokens",
                given["max_tokens"],
                "contradicts max_completion_tokens",
                fix="set one of them, or drop both with rollout.override: {max_tokens: null}",
            )
        fields["max_tokens"] = given["max_completion_tokens"]
    return fields


def read_model(given: Mapping[str, Any]) -> None:
    """Check that the model's name is a text. Any name is the policy."""
    if not isinstance(given.get("model", ""), str):
        raise unsupported("model", given["model"], "is not a text")


def read_usage(given: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with its usage. Raises ``GatewayError`` (400) for other ``stream_options``."""
    options = given.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise unsupported("stream_options", options, "is not an object")
    for name in options:
        if name not in _STREAM_OPTIONS:
            fix = "there are " + " and ".join(_STREAM_OPTIONS)
            raise wrong(f"stream_options.{name}", "is not an option of streams", fix=fix, code="unknown_parameter")
        flag(options, name)
    if not given.get("stream"):
        raise unsupported("stream_options", options, "is of no use without a stream", fix="set stream: true")
    return bool(options.get("include_usage"))


def read_preferences(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a chat template may read or not; see ``ModelRequest.preferences``."""
    preferences = {}
    for name, levels in LEVELS.items():
        value = given.get(name)
        if value is None:
            continue
        if value not in levels:
            raise unsupported(name, value, f"is none of {', '.join(levels)}")
        if value != _USUAL.get(name):
            preferences[name] = value
    return preferences


def read_template_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """The variables for the chat template; see ``ModelRequest.template_kwargs``."""
    value = given.get("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong("chat_template_kwargs", f"is not an object: {shown(value, 80)}")
    return value


def choices(asked: ModelRequest, count: Any) -> list[ModelRequest]:
    """One request for each of ``count`` choices of an answer, by default one.

    The calls after the first have its id and their number, and a seed of their own where the request has one: else all
    would be the same.
    """
    return [asked, *(numbered(asked, number) for number in range(1, choice_count(count)))]


def choice_count(count: Any) -> int:
    """How many choices a field ``n`` asks for. Raises ``GatewayError`` (400)."""
    fix = "have one answer with rollout.override: {n: null}"
    return whole({"n": count}, "n", 1, MOST_CHOICES, 1, fix=fix)


def numbered(asked: ModelRequest, number: int) -> ModelRequest:
    """``asked`` as the choice of an answer with this ``number``, which is not the first."""
    relay = None if asked.relay is None else _apart(asked.relay, number)
    return replace(asked, call_id=f"{asked.call_id}-{number}", fields=_apart(asked.fields, number), relay=relay)


def _apart(fields: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """``fields`` with another seed for each number, where they have one."""
    seed = fields.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        return fields
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=4).digest()
    return {**fields, "seed": int.from_bytes(digest) >> 1}
