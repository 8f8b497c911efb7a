"""``rollout.override``, which names fields as in the chat completions API, applied to the Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.gateway.dialects.overrides import STRICT, apply_override, has_pattern

__all__ = ["override_fields"]

_NAMES: Mapping[str, str] = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
"""Fields that have another name here."""
_WITHIN: Mapping[str, tuple[str, str]] = {
    "response_format": ("text", "format"),
    "verbosity": ("text", "verbosity"),
    "reasoning_effort": ("reasoning", "effort"),
}
"""Fields that are part of another one here."""
_LOGPROBS = "message.output_text.logprobs"


def override_fields(body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Apply ``override`` to a request's body; see ``Dialect.override``.

    The names that are returned are those of this API.
    """
    plain = {_NAMES.get(name, name): value for name, value in override.items() if name not in (*_WITHIN, STRICT)}
    logprobs = plain.pop("logprobs", ...)
    result, changed = apply_override(body, {name: _flat(value) for name, value in plain.items()})
    names = set(changed)
    for name, (outer, inner) in _WITHIN.items():
        if name in override and _replace(result, outer, inner, _flat(override[name])):
            names.add(f"{outer}.{inner}")
    if logprobs is not ... and _include(result, bool(logprobs)):
        names.add("include")
    if STRICT in override and _set_strict(result, bool(override[STRICT])):
        names.add(STRICT)
    return result, tuple(sorted(names))


def _flat(value: Any) -> Any:
    """A value whose content chat completions put under its type, and this API beside it."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or not isinstance(value.get(kind), dict):
        return value
    return {"type": kind, **value[kind]}


def _replace(body: dict[str, Any], outer: str, inner: str, value: Any) -> bool:
    """Replace a field of a field, or drop it where ``value`` is ``None``. Returns whether the request had another."""
    given = body.get(outer)
    if not isinstance(given, dict):
        given = {}
    rest = {name: each for name, each in given.items() if name != inner}
    if value is not None:
        rest[inner] = value
    if rest or outer in body:
        body[outer] = rest
    return given.get(inner) not in (None, value)


def _include(body: dict[str, Any], wanted: bool) -> bool:
    """Ask for log-probabilities or not. Returns whether the request did the other."""
    given = body.get("include") or []
    if not isinstance(given, list) or (_LOGPROBS in given) == wanted:
        return False
    body["include"] = [*given, _LOGPROBS] if wanted else [each for each in given if each != _LOGPROBS]
    return not wanted


def _set_strict(body: dict[str, Any], strict: bool) -> bool:
    """Set the field ``strict`` of every tool that has one. Returns whether any had the other value."""
    tools = body.get("tools")
    if not isinstance(tools, list):
        return False
    body["tools"] = [{**tool, STRICT: strict} if _may_be_strict(tool) else tool for tool in tools]
    return any(_is_strict(tool, strict) != strict for tool in tools if _may_be_strict(tool))


def _may_be_strict(tool: Any) -> bool:
    return isinstance(tool, dict) and (tool.get("type") == "function" or has_pattern(tool))


def _is_strict(tool: Mapping[str, Any], default: bool) -> bool:
    given = tool.get(STRICT)
    return bool((has_pattern(tool) or default) if given is None else given)
