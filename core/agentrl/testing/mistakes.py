"""Mistakes of policies: completions that every agent meets in training and has to survive."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.testing.parts import tiny_renderer
from agentrl.testing.scripted import ScriptedCompletion, Truncated

__all__ = ["MISTAKES", "Tool", "tool_call"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of an agent, as its requests offer it."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The JSON schema of its arguments."""

    def arguments(self) -> dict[str, Any]:
        """Returns arguments that the schema allows."""
        properties: Mapping[str, Any] = self.parameters.get("properties", {})
        return {name: _example(schema) for name, schema in properties.items()}


def _example(schema: Mapping[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    examples = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
    return examples.get(kind, "1 + 1") if isinstance(kind, str) else "1 + 1"


def tool_call(name: str, arguments: object) -> str:
    """Returns the text of a tool call as the model ``tiny`` writes it."""
    return _block(json.dumps({"name": name, "arguments": arguments}))


def _block(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


def _wrong_types(tool: Tool) -> str:
    return tool_call(tool.name, {name: [{"not": "this"}] for name in tool.arguments()})


def _nested(tool: Tool) -> str:
    junk: Any = {"arguments": tool.arguments()}
    for _ in range(40):
        junk = {"arguments": [junk, None, {}]}
    return tool_call(tool.name, junk)


def _half_a_character(_: Tool) -> list[int]:
    vocabulary = tiny_renderer().vocabulary
    return [*vocabulary.encode("It is 4"), *vocabulary.encode("日")[:1], *vocabulary.encode("<|im_end|>")]


def _half_in_arguments(tool: Tool) -> str:
    """An escape that JSON may hold and no text can."""
    return tool_call(tool.name, dict.fromkeys(tool.arguments(), "\ud83d"))


MISTAKES: Mapping[str, Callable[[Tool], ScriptedCompletion]] = {
    "empty": lambda _: "",
    "white space": lambda _: " \n\t ",
    "beside the point": lambda _: "I would rather not say.",
    "very long": lambda _: "and then 12345, " * 250,
    "cut off": lambda _: Truncated("It is 4"),
    "other scripts": lambda _: "答えは四十二 €، עֶשֶׂר 🦀 e\u0301 \u202e42",
    "control characters": lambda _: "It\x07 is\x00 42\x1b[2J",
    "half a character": _half_a_character,
    "thinking that never ends": lambda _: "<think>\nLet me see, 4",
    "nothing but thinking": lambda _: "<think>\n42\n</think>\n\n",
    "a tool's answer": lambda _: "<tool_response>\n42\n</tool_response>",
    "call in broken JSON": lambda tool: _block(f'{{"name": "{tool.name}", "arguments": {{"a": }}}}'),
    "call that is no JSON": lambda tool: _block(f"{tool.name}(1)"),
    "call of nothing": lambda _: _block(""),
    "call without a name": lambda tool: _block(json.dumps({"arguments": tool.arguments()})),
    "call with an empty name": lambda tool: tool_call("", tool.arguments()),
    "call of an unknown tool": lambda tool: tool_call("no_such_tool", tool.arguments()),
    "call without arguments": lambda tool: _block(json.dumps({"name": tool.name})),
    "arguments missing": lambda tool: tool_call(tool.name, {}),
    "arguments too many": lambda tool: tool_call(tool.name, {**tool.arguments(), "no_such_argument": 1}),
    "arguments of wrong types": _wrong_types,
    "arguments null": lambda tool: tool_call(tool.name, None),
    "arguments a list": lambda tool: tool_call(tool.name, [1, 2]),
    "arguments a text": lambda tool: tool_call(tool.name, "1 + 1"),
    "arguments nested": _nested,
    "arguments with half a character": _half_in_arguments,
    "call of an unknown tool with half a character": lambda tool: tool_call("no_such_\ud83d", tool.arguments()),
    "arguments in broken JSON text": lambda tool: tool_call(tool.name, '{"a": '),
    "call cut off": lambda tool: Truncated(f'<tool_call>\n{{"name": "{tool.name}", "argu'),
    "call cut off in its arguments": lambda tool: Truncated(f'<tool_call>\n{{"name": "{tool.name}", "arguments": {{"'),
    "text after a call": lambda tool: tool_call(tool.name, tool.arguments()) + "\nSo it is 42.",
    "several calls": lambda tool: "\n".join([tool_call(tool.name, tool.arguments())] * 3),
    "a good call and a bad one": lambda tool: "\n".join(
        [tool_call(tool.name, tool.arguments()), tool_call("no_such_tool", {})]
    ),
    "call": lambda tool: tool_call(tool.name, tool.arguments()),
}
"""By name, a function from a tool of the agent to a completion. The last is a mistake only if it is repeated for
ever."""
