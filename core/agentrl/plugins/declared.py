"""The keys that something takes, as its source declares them: names, types, defaults and help."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agentrl.errors import one_line
from agentrl.plugins.source import Definition, Sources

__all__ = [
    "ROOTS",
    "Declared",
    "Key",
    "bounds_of",
    "declared",
    "default_node",
    "default_of",
    "fields_of",
    "given_to",
    "is_short",
    "literal",
    "section_of",
    "type_of",
]

_GIVEN = {
    "agents": ("base_url", "api_key", "http_client", "model"),
    "rewards": ("data", "episode"),
    "executors": ("agent",),
}
"""By kind, what is passed by agentrl and is no key."""
_CONTEXT = ("self", "cls", "settings", "context", "config")
_ABBREVIATED = ("Dr", "al", "e.g", "i.e", "cf", "vs", "eq", "sec")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a configuration."""

    name: str
    type: str
    """In words."""
    default: str | None
    """As YAML; ``None`` where it has to be set."""
    help: str
    choices: tuple[str, ...] = ()
    """The values that it takes, where those are enumerated."""
    section: Definition | None = None
    """The class that declares the keys below it."""
    short: bool = False
    """Whether a name alone may stand in the place of those."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What the source of an object says of it: its help, and the keys that it takes."""

    help: str
    """One sentence; empty where the source says nothing."""
    keys: tuple[Key, ...]


def declared(target: str, kind: str, sources: Sources) -> Declared | None:
    """What an entry's ``target`` says of itself; ``None`` where its source is not to be found."""
    definition = sources.target(target)
    if definition is None:
        return None
    found = _made_of(definition, sources)
    return Declared(_sentence(definition.doc or found.doc), tuple(_keys(found, kind, sources)))


def given_to(target: str, sources: Sources) -> dict[str, Any]:
    """The keyword arguments of the call that makes an entry's ``target``, as ``literal`` reads them.

    Of ``replace(other, …)`` those of ``other`` too. Empty where the target is not made by a call, or has no source.
    """
    definition = sources.target(target)
    return {} if definition is None else _given(definition, sources)


def _given(definition: Definition, sources: Sources) -> dict[str, Any]:
    node = definition.node
    call = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(call, ast.Call):
        return {}
    given = {keyword.arg: literal(keyword.value) for keyword in call.keywords if keyword.arg}
    replaced = sources.meant(call.args[0], definition.module) if call.args and _is_replace(call) else None
    return given if replaced is None else {**_given(replaced, sources), **given}


def _is_replace(call: ast.Call) -> bool:
    return ast.unparse(call.func).rpartition(".")[2] == "replace"


def fields_of(definition: Definition, sources: Sources) -> Iterator[Key]:
    """The keys of a pydantic model, those of the models that it derives from first."""
    owners = [each for each in sources.bases(definition) if _name(each) not in ROOTS]
    found: dict[str, Key] = {}
    for owner in (*reversed(owners), definition):
        assert isinstance(owner.node, ast.ClassDef)
        for statement in owner.node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = _alias(statement.value) or statement.target.id
                if not name.startswith("_") and not ast.unparse(statement.annotation).startswith("ClassVar"):
                    found[name] = _field(name, statement, owner, sources)
    yield from found.values()


def _alias(value: ast.expr | None) -> str | None:
    """The name by which a configuration calls a field whose own is a word of Python."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return next((str(literal(each.value)) for each in keywords if each.arg == "alias"), None)


def _name(definition: Definition) -> str:
    return getattr(definition.node, "name", "")


def _sentence(doc: str) -> str:
    """The first sentence of a docstring; a stop within brackets, or after an abbreviation, is no end."""
    paragraph = one_line(doc.strip().partition("\n\n")[0]).replace("``", "`")
    for stop in re.finditer(r"\. (?=[^a-z(])", paragraph):
        sentence = paragraph[: stop.start()]
        if sentence.count("(") == sentence.count(")") and not sentence.endswith(_ABBREVIATED):
            return f"{sentence}."
    return paragraph


def _made_of(definition: Definition, sources: Sources) -> Definition:
    """For ``name = make()`` what is called, for ``name = other`` what ``other`` is; else the definition itself."""
    node = definition.node
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if isinstance(value, ast.Call) and not value.keywords:
        return sources.meant(value.func, definition.module) or definition
    return (sources.meant(value, definition.module) if value is not None else None) or definition


def _keys(definition: Definition, kind: str, sources: Sources) -> Iterator[Key]:
    node = definition.node
    if isinstance(node, ast.ClassDef):
        settings = sources.member(definition, "Settings")
        if settings is not None and isinstance(settings.node, ast.Assign):
            settings = sources.meant(settings.node.value, settings.module)
        if settings is not None and isinstance(settings.node, ast.ClassDef):
            yield from fields_of(settings, sources)
            return
        for method in ("__init__", *(("run", "__call__") if kind == "agents" else ())):
            found = sources.member(definition, method)
            if found is not None:
                yield from _parameters(found, kind, 1 if method == "__init__" else 2, sources)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from _parameters(definition, kind, 1 if kind in ("agents", "rewards", "normalisers") else 0, sources)
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        yield from _slots(node.value)


def _slots(call: ast.Call) -> Iterator[Key]:
    """Of a choice of parts, the parts: each may be replaced, or given keys."""
    given = {keyword.arg: literal(keyword.value) for keyword in call.keywords if keyword.arg}
    if ast.unparse(call.func).rpartition(".")[2] == "Preset":
        given.setdefault("filter", {"name": "filter.none"})
    for slot, chosen in given.items():
        if isinstance(chosen, dict) and "name" in chosen:
            yield Key(slot, "name, or {name: …, its keys}", str(chosen["name"]), "", short=True)


def _parameters(definition: Definition, kind: str, skipped: int, sources: Sources) -> Iterator[Key]:
    assert isinstance(definition.node, ast.FunctionDef | ast.AsyncFunctionDef)
    arguments = definition.node.args
    given = (*_CONTEXT, *_GIVEN.get(kind, ()))
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [
        *list(zip(positional, defaults, strict=True))[skipped:],
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if argument.arg not in given:
            type_, choices = type_of(argument.annotation, definition.module, sources)
            shown = None if default is None else default_of(default, definition.module, sources)
            yield Key(argument.arg, type_, shown, "", choices)


def _field(name: str, statement: ast.AnnAssign, owner: Definition, sources: Sources) -> Key:
    assert isinstance(owner.node, ast.ClassDef)
    after = dict(zip(owner.node.body, owner.node.body[1:], strict=False)).get(statement)
    constant = after.value if isinstance(after, ast.Expr) else None
    help_ = constant.value if isinstance(constant, ast.Constant) and isinstance(constant.value, str) else ""
    type_, choices = type_of(statement.annotation, owner.module, sources)
    default = default_node(statement.value)
    section = section_of(statement.annotation, owner.module, sources)
    return Key(
        name,
        ", ".join([type_, *bounds_of(statement.value)]),
        None if default is None else default_of(default, owner.module, sources),
        one_line(help_),
        choices,
        section,
        section is not None and is_short(section, sources),
    )


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
_NAMED_FIRST = ("name", "type", "action")
ROOTS = ("BaseModel", "BaseSettings", "Section")
"""Base classes of sections, which have no keys of their own."""
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
    """The expression that was assigned to a name, or ``None``."""
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
    if isinstance(node, ast.List) and any(isinstance(each, ast.Call) for each in node.elts):
        return f"[{', '.join(default_of(each, module, sources) for each in node.elts)}]"
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
