"""The tools of the Messages API, and which of them the policy may or must call.

Tools that the client runs are functions, those included whose input the API itself defines, such as ``bash``. Tools
that the API's servers would run cannot be served: they are left out of the prompt and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentrl.errors import shown
from agentrl.gateway.dialects.refusals import flag, text, unsupported, wrong
from agentrl.gateway.dialects.schemas import check_schema
from agentrl.gateway.dialects.tools import Toolbox

__all__ = ["read_choice", "read_tools"]

_CUSTOM = (None, "custom")
_FIELDS = frozenset({"type", "name", "description", "input_schema", "strict"})
_NO_EFFECT = frozenset({"cache_control", "eager_input_streaming", "max_characters"})
"""Fields about caches, and about when and how much of something is sent."""
_CANNOT_BE_MET = ("input_examples", "defer_loading")
"""Fields that are counted where they ask for something. Tools whose loading is deferred are in the prompt."""
_DIRECT = "direct"

_PATH = {"type": "string", "description": "The path of the file or folder."}
_TEXT = {"type": "string"}
_LINES = {"type": "array", "items": {"type": "integer"}, "description": "The first and the last line to show."}
_EDITING: Mapping[str, Any] = {
    "file_text": _TEXT | {"description": "The text of the file to create."},
    "old_str": _TEXT | {"description": "The text to replace. It occurs once in the file."},
    "new_str": _TEXT | {"description": "The text to put in its place."},
    "insert_line": {"type": "integer", "description": "The line after which to insert; 0 is the beginning."},
    "view_range": _LINES,
}
_INSERTED: Mapping[str, Any] = {"insert_text": _TEXT | {"description": "The text to insert."}}


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _commands(*commands: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(commands)}


_BASH = (
    "Runs a command in a shell that keeps its state from call to call.",
    _object(
        {
            "command": _TEXT | {"description": "The command to run."},
            "restart": {"type": "boolean", "description": "Whether to start the shell anew instead."},
        }
    ),
)
_EDITOR = "Shows and edits text files."
_FIRST_EDITOR = (
    _EDITOR,
    _object(
        {
            "command": _commands("view", "create", "str_replace", "insert", "undo_edit"),
            "path": _PATH,
            **_EDITING,
            "new_str": _TEXT | {"description": "The text to put in its place, or to insert."},
        },
        "command",
        "path",
    ),
)
_LATER_EDITOR = (
    _EDITOR,
    _object(
        {
            "command": _commands("view", "create", "str_replace", "insert"),
            "path": _PATH,
            **_EDITING,
            **_INSERTED,
        },
        "command",
        "path",
    ),
)
_MEMORY = (
    "Keeps notes in files that later conversations can read.",
    _object(
        {
            "command": _commands("view", "create", "str_replace", "insert", "delete", "rename"),
            "path": _PATH,
            **_EDITING,
            **_INSERTED,
            "old_path": _TEXT | {"description": "The path to rename."},
            "new_path": _TEXT | {"description": "The path after that."},
        },
        "command",
    ),
)
_DEFINED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "bash_20241022": _BASH,
    "bash_20250124": _BASH,
    "text_editor_20241022": _FIRST_EDITOR,
    "text_editor_20250124": _FIRST_EDITOR,
    "text_editor_20250429": _LATER_EDITOR,
    "text_editor_20250728": _LATER_EDITOR,
    "memory_20250818": _MEMORY,
}
"""What the API says itself of tools that the client runs: their description and the schema of their input."""


def read_tools(value: Any) -> Toolbox:
    """The ``tools`` of a request. Raises ``GatewayError`` (400) naming the tool at fault."""
    if not value:
        return Toolbox()
    if not isinstance(value, list):
        raise wrong("tools", f"is not a list: {shown(value, 80)}")
    functions: list[dict[str, Any]] = []
    unmet: set[str] = set()
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise wrong(f"tools.{index}", f"is not an object: {shown(tool, 80)}")
        function = _function(tool, f"tools.{index}", unmet)
        if function is not None:
            functions.append({"type": "function", "function": function})
    strict = any(tool["function"].get("strict") for tool in functions)
    return Toolbox(functions or None, strict=strict, calls=bool(functions), unmet=tuple(sorted(unmet)))


def _function(tool: Mapping[str, Any], where: str, unmet: set[str]) -> dict[str, Any] | None:
    """A tool as a function, or ``None`` where it cannot be served; what is unmet is added to ``unmet``."""
    kind = text(tool, "type", where)
    callers = tool.get("allowed_callers")
    if isinstance(callers, list) and _DIRECT not in callers and callers:
        unmet.add("allowed_callers")
        return None
    if kind not in _CUSTOM and kind not in _DEFINED:
        if "input_schema" in tool:
            raise wrong(f"{where}.type", f"is {shown(kind, 80)}", fix="a tool with an input_schema is of type custom")
        unmet.add(str(kind))
        return None
    name = text(tool, "name", where)
    if not name:
        raise wrong(f"{where}.name", "is missing")
    unmet.update(each for each in _CANNOT_BE_MET if tool.get(each))
    for other in sorted(tool.keys() - _FIELDS - _NO_EFFECT - {*_CANNOT_BE_MET, "allowed_callers"}):
        if tool[other] is not None:
            raise wrong(f"{where}.{other}", "is not a field that can be honoured here", code="unknown_parameter")
    described, schema = _definition(tool, kind, where)
    about = {"description": described} if described else {}
    if strict := flag(tool, "strict"):
        check_schema(schema, f"{where}.input_schema")
    return {"name": name, **about, "parameters": schema, **({"strict": True} if strict else {})}


def _definition(tool: Mapping[str, Any], kind: str | None, where: str) -> tuple[str | None, dict[str, Any]]:
    if kind not in _CUSTOM:
        return _DEFINED[str(kind)]
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise wrong(f"{where}.input_schema", f"is no JSON schema: {shown(schema, 80)}")
    return text(tool, "description", where), schema


def read_choice(value: Any, tools: Toolbox) -> tuple[Toolbox, bool]:
    """``tools`` as a ``tool_choice`` leaves them, and whether one call ends the answer.

    Raises ``GatewayError`` (400).
    """
    if value is None:
        return tools, False
    kind = value.get("type") if isinstance(value, dict) else None
    names = [tool["function"]["name"] for tool in tools.functions or ()]
    if kind == "auto":
        pass
    elif kind == "none":
        tools = replace(tools, calls=False)
    elif kind == "any":
        if not names:
            raise unsupported("tool_choice", value, "has nothing to call: none of the tools is one of the client's")
        tools = replace(tools, must_call=tuple(dict.fromkeys(names)))
    elif kind == "tool":
        if value.get("name") not in names:
            fix = f"one of {', '.join(names)}" if names else "no tool of the client's is there"
            raise wrong("tool_choice.name", f"names none of the tools: {shown(value.get('name'), 80)}", fix=fix)
        tools = replace(tools, must_call=(value["name"],))
    else:
        raise unsupported("tool_choice", value, "is no way of choosing a tool", fix="auto, any, tool or none")
    return tools, tools.functions is not None and flag(value, "disable_parallel_tool_use")
