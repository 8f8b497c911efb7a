"""The keys that something takes, as its source declares them: names, types, defaults and help."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from agentrl.errors import one_line
from agentrl.plugins.annotations import (
    ROOTS,
    bounds_of,
    default_node,
    default_of,
    is_short,
    literal,
    section_of,
    type_of,
)
from agentrl.plugins.source import Definition, Sources

__all__ = ["Declared", "Key", "declared", "fields_of"]

_GIVEN = {
    "agents": ("base_url", "api_key", "http_client", "model"),
    "rewards": ("data", "episode"),
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
    """What something is, and the keys that it takes."""

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


def fields_of(definition: Definition, sources: Sources) -> Iterator[Key]:
    """The keys of a pydantic model, those of the models that it derives from first."""
    owners = [each for each in sources.bases(definition) if _name(each) not in ROOTS]
    found: dict[str, Key] = {}
    for owner in (*reversed(owners), definition):
        assert isinstance(owner.node, ast.ClassDef)
        for statement in owner.node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                if not name.startswith("_") and not ast.unparse(statement.annotation).startswith("ClassVar"):
                    found[name] = _field(name, statement, owner, sources)
    yield from found.values()


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
    """What an assigned name was made by calling, or is another name of."""
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
        yield from _parameters(definition, kind, 1 if kind in _GIVEN else 0, sources)
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        yield from _slots(node.value)


def _slots(call: ast.Call) -> Iterator[Key]:
    """Of a choice of parts, the parts: each may be replaced, or given keys."""
    for keyword in call.keywords:
        chosen = literal(keyword.value)
        if keyword.arg and isinstance(chosen, dict) and "name" in chosen:
            yield Key(keyword.arg, "name, or {name: …, its keys}", str(chosen["name"]), "", short=True)


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
