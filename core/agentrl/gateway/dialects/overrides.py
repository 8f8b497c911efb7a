"""``rollout.override``: request fields that the configuration replaces or drops, and which of them it may.

Fields are named as in the chat completions API.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Set
from typing import Any

from agentrl.errors import ConfigError, GatewayError, near_matches, shown

__all__ = ["ALIASES", "STRICT", "apply_override", "check_override", "has_pattern", "misspelled"]

ALIASES: Mapping[str, str] = {"max_completion_tokens": "max_tokens"}
"""Second names of fields."""

STRICT = "strict"
"""A key of an override that is no field of a request: ``strict`` of each of its tools."""

_THE_AGENTS: Mapping[str, str] = {
    "messages": "the conversation is the agent's own; change the agent",
    "model": "every call goes to the model of the key `model`, whatever a request calls it",
    "stream": "a client reads a stream where it asked for one; have the agent ask without stream",
}
"""Fields that an override cannot change, each with the reason or what to do instead."""

_PROBE = {"messages": [{"role": "user", "content": "Hello."}]}
_SURE = 0.9
"""How similar an unknown name must be to a known one to be taken for a misspelling of it, from 0 to 1. High, because
fields that only other servers know are often called similarly."""


def apply_override(body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Apply ``override`` to a request's body.

    Returns the new body and the sorted names of the fields in ``body`` that were replaced or dropped; of a field with
    two names both. Raises ``GatewayError`` (400) for a field that an override cannot change.
    """
    result, changed = dict(body), set()
    for name, value in override.items():
        if name in _THE_AGENTS:
            raise GatewayError(f"rollout.override cannot change {name}", param=name, fix=_THE_AGENTS[name])
        if name == STRICT:
            continue
        canonical = ALIASES.get(name, name)
        for known in _names(canonical):
            if result.pop(known, None) not in (None, value):
                changed.add(known)
        if value is not None:
            result[canonical] = value
    tools = result.get("tools")
    if STRICT in override and isinstance(tools, list):
        strict = bool(override[STRICT])
        if any(_is_strict(tool, strict) != strict for tool in tools):
            changed.add(STRICT)
        result["tools"] = [_with_strict(tool, strict) for tool in tools]
    return result, tuple(sorted(changed))


def check_override(
    override: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], object], fields: Set[str] | None = None
) -> None:
    """Raise ``ConfigError``, naming the key at fault, where ``override`` would have every request refused.

    ``parse`` reads a request's body and raises ``GatewayError`` where it refuses it. ``fields`` are the names that it
    knows; ``None`` accepts any name, because an endpoint elsewhere may know it.
    """
    for name, value in override.items():
        key = f"rollout.override.{name}"
        if name in _THE_AGENTS:
            raise ConfigError(f"{key} cannot be: an override does not change {name}", fix=_THE_AGENTS[name])
        if name == STRICT and not isinstance(value, bool | None):
            raise ConfigError(f"{key}={shown(value, 80)} is neither true nor false", fix="set it to false, or drop it")
        others = [other for other in _names(ALIASES.get(name, name)) if other != name and other in override]
        if others:
            raise ConfigError(f"{key} and rollout.override.{others[0]} are one field", fix="set one of them")
        if fields is not None:
            _check_name(name, value, fields | {STRICT})
    _check_answerable(override, parse)


def misspelled(name: str, fields: Set[str]) -> str | None:
    """The one of ``fields`` that ``name`` is a misspelling of; ``None`` where it may be another server's field."""
    return next(iter(difflib.get_close_matches(name, fields, n=1, cutoff=_SURE)), None)


def _check_name(name: str, value: Any, fields: Set[str]) -> None:
    """Refuse an unknown name, except to drop a field that agents send and that is no misspelling of a known one."""
    if name in fields or (value is None and misspelled(name, fields) is None):
        return
    raise ConfigError(
        f"rollout.override.{name}={shown(value, 80)}: requests have no field {name!r}",
        fix=near_matches(name, fields),
    )


def _check_answerable(override: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], object]) -> None:
    try:
        parse(apply_override(_PROBE, override)[0])
    except GatewayError as error:
        at_fault = [name for name in override if error.param in _names(ALIASES.get(name, name))]
        key = f"rollout.override.{at_fault[0]}" if at_fault else "rollout.override"
        raise ConfigError(f"with {key} every call would be refused: {error.message}", fix=f"change {key}") from error


def _names(canonical: str) -> tuple[str, ...]:
    """A field's canonical name and its aliases."""
    return (canonical, *(alias for alias, field in ALIASES.items() if field == canonical))


def has_pattern(tool: Any) -> bool:
    """Whether a custom tool's text is to match a regular expression, to which it is kept unless ``strict`` is false."""
    form = tool.get("format") if isinstance(tool, dict) else None
    grammar = form.get("grammar", form) if isinstance(form, dict) else None
    return isinstance(grammar, dict) and grammar.get("syntax") == "regex"


def _is_strict(tool: Any, default: bool) -> bool:
    """Whether ``tool`` is strict; ``default`` where it does not say."""
    custom = tool.get("custom") if isinstance(tool, dict) else None
    if isinstance(custom, dict) and has_pattern(custom):
        return bool(custom.get("strict", True))
    return bool(_function(tool).get("strict", default))


def _with_strict(tool: Any, strict: bool) -> Any:
    """``tool`` with the field ``strict``; unchanged where it has none."""
    if isinstance(tool, dict) and has_pattern(tool.get("custom")):
        return {**tool, "custom": {**tool["custom"], "strict": strict}}
    if not _function(tool):
        return tool
    function = {name: given for name, given in tool["function"].items() if name != "strict"}
    return {**tool, "function": function | ({"strict": True} if strict else {})}


def _function(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function if isinstance(function, dict) else {}
