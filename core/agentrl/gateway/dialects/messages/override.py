"""``rollout.override``, which names fields as in the chat completions API, applied to the Messages API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.gateway.dialects.overrides import STRICT, apply_override

__all__ = ["override_fields"]

_NAMES: Mapping[str, str] = {"stop": "stop_sequences"}
"""Fields that have another name here."""
_CONFIG: Mapping[str, str] = {"response_format": "format", "reasoning_effort": "effort"}
"""Fields that are part of ``output_config`` here."""
_PARALLEL = "parallel_tool_calls"
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


def override_fields(body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Apply ``override`` to a request's body; see ``Dialect.override``.

    The names that are returned are those of this API.
    """
    apart = (*_CONFIG, _PARALLEL, STRICT)
    fields = {_NAMES.get(name, name): _value(name, value) for name, value in override.items() if name not in apart}
    result, changed = apply_override(body, fields)
    names = set(changed)
    if _PARALLEL in override and _set_one_call(result, override[_PARALLEL] is False):
        names.add("tool_choice.disable_parallel_tool_use")
    for name, key in _CONFIG.items():
        if name in override and _set_config(result, key, override[name]):
            names.add(f"output_config.{key}")
    if STRICT in override and _set_strict(result, bool(override[STRICT])):
        names.add(STRICT)
    return result, tuple(sorted(names))


def _value(name: str, value: Any) -> Any:
    if name == "stop" and isinstance(value, str):
        return [value]
    return _choice(value) if name == "tool_choice" else value


def _choice(value: Any) -> Any:
    """A ``tool_choice`` of the chat completions API as one of the Messages API."""
    if isinstance(value, str):
        return {"type": _CHOICES.get(value, value)}
    function = value.get("function") if isinstance(value, dict) else None
    return {"type": "tool", "name": function.get("name")} if isinstance(function, dict) else value


def _set_one_call(body: dict[str, Any], one: bool) -> bool:
    """Set whether one call ends an answer. Returns whether the request had it otherwise."""
    choice = body.get("tool_choice")
    given = choice if isinstance(choice, dict) else {}
    changed = bool(given.get("disable_parallel_tool_use")) != one
    if changed and (given or body.get("tools")):
        body["tool_choice"] = {"type": "auto", **given, "disable_parallel_tool_use": one}
    return changed and bool(given)


def _set_config(body: dict[str, Any], key: str, value: Any) -> bool:
    """Replace or drop what ``output_config`` has under ``key``. Returns whether the request had something else there.

    The format has an older place too.
    """
    config = body.get("output_config")
    given = config if isinstance(config, dict) else {}
    before = given.get(key)
    if key == "format":
        older = body.pop("output_format", None)
        before = older if before is None else before
        value = _format(value)
    if value is not None or key in given:
        body["output_config"] = {**given, key: value}
    return before is not None and before != value


def _format(value: Any) -> Any:
    """A ``response_format`` of the chat completions API as a format of the Messages API."""
    schema = value.get("json_schema") if isinstance(value, dict) else None
    if isinstance(schema, dict):
        return {"type": "json_schema", "schema": schema.get("schema")}
    return None if isinstance(value, dict) and value.get("type") == "text" else value


def _set_strict(body: dict[str, Any], strict: bool) -> bool:
    """Set ``strict`` of every tool that has a schema. Returns whether any had another."""
    tools = body.get("tools")
    if not isinstance(tools, list):
        return False
    changed = any(_is_function(tool) and bool(tool.get(STRICT, strict)) != strict for tool in tools)
    body["tools"] = [{**tool, STRICT: strict} if _is_function(tool) else tool for tool in tools]
    return changed


def _is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and "input_schema" in tool
