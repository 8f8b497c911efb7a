"""Types and defaults in words, as the source of an annotation has them."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Iterator
from typing import Any

from agentrl.plugins.source import Definition, Sources

__all__ = ["ROOTS", "bounds_of", "default_node", "default_of", "is_short", "literal", "section_of", "type_of"]

_WORDS = {
    "int": "integer",
    "float": "number",
    "str": "text",
    "bool": "true or false",
    "Path": "path",
    "Any": "anything",
    "object": "anything",
    "None": "null",
    "dict": "mapping",
    "list": "list",
    "Mapping": "mapping",
    "Sequence": "list",
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_EMPTY = {"dict": "{}", "list": "[]"}
_NAMED_FIRST = ("name", "type")
ROOTS = ("BaseModel", "BaseSettings", "Section")
"""Classes that have no keys of their own."""
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
}


def members(node: ast.expr | None, module: str, sources: Sources) -> Iterator[ast.expr]:
    """The types that an annotation allows, aliases and ``Annotated`` resolved."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from members(node.left, module, sources)
        yield from members(node.right, module, sources)
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Annotated", "Optional"):
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        yield from members(inner, module, sources)
        if ast.unparse(node.value) == "Optional":
            yield ast.Constant(None)
    elif isinstance(node, ast.Name) and node.id not in _WORDS and isinstance(_value(node, module, sources), ast.expr):
        yield from members(_value(node, module, sources), module, sources)
    elif node is not None:
        yield node


def _value(node: ast.Name, module: str, sources: Sources) -> ast.expr | None:
    """What was assigned to a name."""
    found = sources.find(module, node.id)
    return found.node.value if found is not None and isinstance(found.node, ast.Assign) else None


def type_of(node: ast.expr | None, module: str, sources: Sources) -> tuple[str, tuple[str, ...]]:
    """A type in words, and the values of one that enumerates them."""
    words, choices = list[str](), list[str]()
    for member in members(node, module, sources):
        if isinstance(member, ast.Subscript) and ast.unparse(member.value) == "Literal":
            values = member.slice.elts if isinstance(member.slice, ast.Tuple) else [member.slice]
            choices += [_yaml(literal(value)) for value in values]
            words += choices
        elif isinstance(member, ast.Subscript):
            held = member.slice.elts[-1] if isinstance(member.slice, ast.Tuple) else member.slice
            outer, inner = _word(member.value), type_of(held, module, sources)[0]
            words.append(outer if inner == "anything" else f"{outer} of {inner}")
        else:
            section = section_of(member, module, sources)
            words.append(_word(member) if section is None else _form(section, sources))
    return " or ".join(words) or "anything", tuple(choices)


def _word(node: ast.expr) -> str:
    text = "None" if isinstance(node, ast.Constant) and node.value is None else ast.unparse(node)
    return _WORDS.get(text.rpartition(".")[2], text)


def _form(section: Definition, sources: Sources) -> str:
    names = _required(section, sources)
    return f"name, or {{{names[0]}: …, its keys}}" if is_short(section, sources) else "keys"


def is_short(section: Definition, sources: Sources) -> bool:
    """Whether a section's only required key is its name, so that the name alone may be written."""
    return _required(section, sources) in [[name] for name in _NAMED_FIRST]


def _required(section: Definition, sources: Sources) -> list[str]:
    """The keys of a section that have to be set."""
    owners = [each.node for each in (section, *sources.bases(section)) if isinstance(each.node, ast.ClassDef)]
    fields = [each for owner in owners for each in owner.body if isinstance(each, ast.AnnAssign)]
    return [ast.unparse(field.target) for field in fields if default_node(field.value) is None]


def default_node(value: ast.expr | None) -> ast.expr | None:
    """The default of a field, also where ``Field`` states it; ``None`` where there is none."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        keywords = {each.arg: each.value for each in value.keywords}
        made = keywords.get("default_factory")
        value = value.args[0] if value.args else keywords.get("default", made and ast.Call(made, [], []))
    return None if isinstance(value, ast.Constant) and value.value is ... else value


def section_of(node: ast.expr | None, module: str, sources: Sources) -> Definition | None:
    """The class of an annotation that has keys of its own."""
    for member in members(node, module, sources):
        found = sources.meant(member, module) if isinstance(member, ast.Name) and member.id not in _WORDS else None
        if found is not None and isinstance(found.node, ast.ClassDef):
            owners = [each.node for each in (found, *sources.bases(found)) if isinstance(each.node, ast.ClassDef)]
            if {ast.unparse(base) for owner in owners for base in owner.bases} & set(ROOTS):
                return found
    return None


def default_of(node: ast.expr, module: str, sources: Sources) -> str:
    """A default as YAML."""
    if isinstance(node, ast.Name) and (value := _value(node, module, sources)) is not None:
        return default_of(value, module, sources)
    if isinstance(node, ast.Call):
        given = [*node.args, *(each.value for each in node.keywords if each.arg in _NAMED_FIRST)]
        return default_of(given[0], module, sources) if given else _EMPTY.get(ast.unparse(node.func), "")
    return _yaml(literal(node))


def literal(node: ast.expr) -> Any:
    """The value of a constant expression; of any other, its source."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](literal(node.left), literal(node.right))
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def bounds_of(value: ast.expr | None) -> list[str]:
    """The limits of a number that ``Field`` states."""
    if not isinstance(value, ast.Call):
        return []
    keywords = {each.arg: each.value for each in value.keywords}
    return [f"{words} {literal(keywords[key])}" for key, words in _BOUNDS.items() if key in keywords]
