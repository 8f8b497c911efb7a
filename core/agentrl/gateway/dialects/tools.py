"""The tools of a request, and which of them the policy may or must call.

A *custom* tool takes free text. The policy is offered it as a function with one text, ``input``, and its calls are
written back as the client's protocol writes calls of custom tools.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from agentrl.errors import shown
from agentrl.gateway.dialects.overrides import STRICT
from agentrl.gateway.dialects.patterns import fits_json
from agentrl.gateway.dialects.refusals import text, unsupported, wrong
from agentrl.gateway.dialects.schemas import check_schema

__all__ = [
    "FREE_FORM",
    "INPUT",
    "Toolbox",
    "a_function",
    "custom_answer",
    "custom_call",
    "custom_input",
    "custom_names",
    "free_text",
    "input_arguments",
    "read_choice",
    "read_tools",
    "unkept",
]

INPUT = "input"
"""The argument of the function that stands for a custom tool."""
FREE_FORM = "format"
"""What is unmet where a custom tool's text is to follow a grammar that cannot be kept."""
_WRITTEN = "arguments of "
"""What the names in a memory begin with, under which arguments are kept; the id of their call follows."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of a request, and how they may be called."""

    functions: list[dict[str, Any]] | None = None
    """The tools as functions in the shape of the chat completions API; ``None`` where there are none."""
    custom: frozenset[str] = frozenset()
    """The names of those that are custom tools."""
    strict: bool = False
    """Whether the arguments of any are to follow its schema."""
    calls: bool = False
    """Whether a tool call in the completion is read as one; otherwise it stays text."""
    must_call: tuple[str, ...] = ()
    """The names of the tools one of which has to be called; empty where none has to."""
    unmet: tuple[str, ...] = ()
    """What was asked of the tools and cannot be granted; see ``Call.unmet``."""


def read_tools(value: Any) -> Toolbox:
    """The ``tools`` of a chat completions request. Raises ``GatewayError`` (400) naming the tool at fault."""
    if not value:
        return Toolbox()
    if not isinstance(value, list):
        raise wrong("tools", f"is not a list: {shown(value, 80)}")
    functions, custom, formats = [], set(), False
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "custom" and isinstance(tool.get("custom"), dict):
            given = tool["custom"]
            functions.append(free_text(given, f"{where}.custom"))
            custom.add(given["name"])
            formats = formats or unkept(given)
        elif kind == "function" and isinstance(tool.get("function"), dict):
            functions.append(a_function(tool, f"{where}.function"))
        else:
            raise wrong(where, "is not a function", fix="the policy calls functions and custom tools only")
    strict = any(tool["function"].get("strict") for tool in functions)
    unmet = (FREE_FORM,) if formats else ()
    return Toolbox(functions, frozenset(custom), strict, calls=True, unmet=unmet)


def a_function(tool: dict[str, Any], where: str) -> dict[str, Any]:
    """``tool`` without ``strict: false``, which is the default, and which templates would show to the policy."""
    function = tool["function"]
    _check_name(function, where)
    text(function, "description", where)
    strict, schema = function.get("strict"), function.get("parameters")
    if not isinstance(strict, bool | None):
        raise wrong(f"{where}.strict", f"is neither true nor false: {shown(strict, 80)}")
    if not isinstance(schema, dict | None):
        raise wrong(f"{where}.parameters", f"is no JSON schema: {shown(schema, 80)}")
    if strict and schema:  # Else the schema is for the policy to read, and frameworks write many dialects of it.
        check_schema(schema, f"{where}.parameters")
    return {**tool, "function": {name: given for name, given in function.items() if name != "strict" or given}}


def _check_name(tool: Mapping[str, Any], where: str) -> str:
    name = text(tool, "name", where)
    if not name:
        raise wrong(f"{where}.name", "is missing")
    return name


def free_text(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A custom tool as a function of one text.

    A grammar that the text is to follow goes into its description. One that can be kept is the text's pattern as well,
    and the function is strict.
    """
    name, description = _check_name(tool, where), text(tool, "description", where) or ""
    form = tool.get("format")
    if _is_grammar(form):
        grammar = form.get("grammar", form)
        definition = grammar.get("definition") if isinstance(grammar, dict) else None
        if not isinstance(definition, str):
            raise wrong(f"{where}.format", f"holds no grammar: {shown(form, 80)}")
        description = f"{description}\n\nThe input follows this grammar:\n{definition}".strip()
    elif form is not None and (not isinstance(form, dict) or form.get("type") != "text"):
        raise wrong(f"{where}.format", f"is neither text nor a grammar: {shown(form, 80)}")
    parameters: dict[str, Any] = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
    function: dict[str, Any] = {
        "name": name,
        **({"description": description} if description else {}),
        "parameters": parameters,
    }
    if (pattern := _pattern(tool)) is not None:
        parameters["properties"][INPUT]["pattern"] = pattern
        parameters["additionalProperties"] = False
        function[STRICT] = True
    return {"type": "function", "function": function}


def unkept(tool: Mapping[str, Any]) -> bool:
    """Whether the text of a custom tool is to follow a grammar that cannot be kept."""
    return _is_grammar(tool.get("format")) and _pattern(tool) is None


def _pattern(tool: Mapping[str, Any]) -> str | None:
    """The regular expression that the text of a custom tool is kept to, unless it is not to be ``strict``."""
    form = tool.get("format")
    grammar = form.get("grammar", form) if _is_grammar(form) else {}
    if not isinstance(grammar, dict) or grammar.get("syntax") != "regex" or tool.get(STRICT) is False:
        return None
    definition = grammar.get("definition")
    return definition if isinstance(definition, str) and fits_json(definition) else None


def _is_grammar(form: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the format of a custom tool is a grammar."""
    return isinstance(form, dict) and form.get("type") == "grammar"


def custom_names(tools: Any) -> frozenset[str]:
    """The names of the custom tools among the ``tools`` of a request that was read before."""
    if not isinstance(tools, list):
        return frozenset()
    customs = [tool.get("custom", tool) for tool in tools if isinstance(tool, dict) and tool.get("type") == "custom"]
    return frozenset(custom["name"] for custom in customs if isinstance(custom.get("name"), str))


def custom_input(arguments: str) -> str:
    """The free text in the arguments that the policy wrote; all of them where they hold none."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    given = value.get(INPUT) if isinstance(value, dict) else None
    return given if isinstance(given, str) else arguments


def input_arguments(given: str) -> str:
    """The arguments of the function that stands for a custom tool, for a call with this free text."""
    return json.dumps({INPUT: given}, ensure_ascii=False)


def custom_answer(call: Mapping[str, Any], memory: MutableMapping[str, Any]) -> dict[str, Any]:
    """A call of the function that stands for a custom tool, as the chat completions API writes it.

    Arguments that hold more than the text, or no text, are kept in ``memory`` until the call comes back.
    """
    function = call["function"]
    given = custom_input(function["arguments"])
    if function["arguments"] != input_arguments(given):
        memory[_WRITTEN + call["id"]] = function["arguments"]
    return {"id": call["id"], "type": "custom", "custom": {"name": function["name"], INPUT: given}}


def custom_call(call: Mapping[str, Any], where: str, memory: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call in a history as one of a function, if it is one of a custom tool; ``memory`` as in ``custom_answer``."""
    custom = call.get("custom")
    if call.get("type") != "custom" or not isinstance(custom, dict):
        return call
    for name in ("name", INPUT):
        if not isinstance(custom.get(name), str):
            raise wrong(f"{where}.custom.{name}", f"is not a text: {shown(custom.get(name), 80)}")
    arguments = memory.get(f"{_WRITTEN}{call.get('id')}")
    if arguments is None or custom_input(arguments) != custom[INPUT]:
        arguments = input_arguments(custom[INPUT])
    function = {"name": custom["name"], "arguments": arguments}
    return {"id": call.get("id"), "type": "function", "function": function}


def read_choice(value: Any, tools: Toolbox) -> Toolbox:
    """``tools`` as a ``tool_choice`` leaves them. Raises ``GatewayError`` (400).

    Takes the forms of the chat completions and of the Responses API. Where a choice names the tools that are allowed,
    the others are left out of the prompt, so that the policy knows what it may call.
    """
    if value is None or value == "auto":
        return tools
    if value == "none":
        return replace(tools, calls=False)
    names = _names(tools.functions or ())
    if value == "required":
        return replace(tools, must_call=_some(names, value))
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "allowed_tools":
        return _allowed(value, tools)
    if kind in ("function", "custom"):
        return replace(tools, must_call=(_named(value, names, "tool_choice"),))
    raise unsupported(
        "tool_choice",
        value,
        "is no way of choosing a tool",
        fix="'none', 'auto', 'required', one tool or allowed_tools; or set rollout.override: {tool_choice: null}",
    )


def _allowed(value: Mapping[str, Any], tools: Toolbox) -> Toolbox:
    allowed = value.get("allowed_tools", value)
    mode, given = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(given, list):
        raise unsupported("tool_choice", value, "holds no mode (auto or required) with a list of tools")
    known = _names(tools.functions or ())
    names = {_named(tool, known, f"tool_choice.tools[{index}]") for index, tool in enumerate(given)}
    left = [tool for tool in tools.functions or () if tool["function"]["name"] in names]
    must = _some(_names(left), value) if mode == "required" else ()
    return replace(tools, functions=left or None, calls=bool(left), must_call=must)


def _named(value: Any, known: Collection[str], where: str) -> str:
    """The name in a choice of one tool, which is written flat or below its type."""
    kind = value.get("type") if isinstance(value, dict) else None
    named = value.get(kind, value) if isinstance(kind, str) else value
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str) or name not in known:
        raise wrong(where, f"names none of the tools: {shown(value, 80)}", fix=f"one of {', '.join(known) or 'none'}")
    return name


def _some(names: tuple[str, ...], choice: Any) -> tuple[str, ...]:
    if not names:
        raise unsupported("tool_choice", choice, "has nothing to call: the request has no tools")
    return names


def _names(tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tool["function"]["name"] for tool in tools))
