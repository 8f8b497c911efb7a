"""``rollout.override``, whose fields are named as in the chat completions API, for requests of the Messages API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.gateway.dialects.overrides import STRICT, apply_override

__all__ = ["override_messages"]

_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


def override_messages(body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Apply ``override`` to a request's body; see ``Dialect.override``.

    The names that are returned are those of ``override``, except that fields which the Messages API names otherwise
    have its name there.
    """
    fields, changed = {name: value for name, value in override.items() if name not in _APART}, set[str]()
    if "stop" in override:
        stop = override["stop"]
        fields["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if "tool_choice" in override:
        fields["tool_choice"] = _choice(override["tool_choice"])
    result, names = apply_override(body, fields)
    if "parallel_tool_calls" in override and _set_parallel(result, override["parallel_tool_calls"] is False):
        changed.add("parallel_tool_calls")
    for name, key in (("response_format", "format"), ("reasoning_effort", "effort")):
        if name in override and _set_config(result, key, override[name]):
            changed.add(name)
    if STRICT in override and _set_strict(result, bool(override[STRICT])):
        changed.add(STRICT)
    return result, tuple(sorted({*names, *changed}))


_APART = frozenset({"stop", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", STRICT})


def _choice(value: Any) -> Any:
    """A ``tool_choice`` of the chat completions API as one of the Messages API."""
    if isinstance(value, str):
        return {"type": _CHOICES.get(value, value)}
    function = value.get("function") if isinstance(value, dict) else None
    return {"type": "tool", "name": function.get("name")} if isinstance(function, dict) else value


def _set_parallel(body: dict[str, Any], one: bool) -> bool:
    choice = body.get("tool_choice")
    given = choice if isinstance(choice, dict) else {}
    changed = bool(given.get("disable_parallel_tool_use")) != one
    if changed and (given or body.get("tools")):
        body["tool_choice"] = {"type": "auto", **given, "disable_parallel_tool_use": one}
    return changed and bool(given)


def _set_config(body: dict[str, Any], key: str, value: Any) -> bool:
    """Replace or drop what ``output_config`` has under ``key``, and the older name of the format."""
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
    tools = body.get("tools")
    if not isinstance(tools, list):
        return False
    functions = [tool for tool in tools if isinstance(tool, dict) and "input_schema" in tool]
    changed = any(bool(tool.get(STRICT)) != strict and STRICT in tool for tool in functions)
    body["tools"] = [{**tool, STRICT: strict} if tool in functions else tool for tool in tools]
    return changed
