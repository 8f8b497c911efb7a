"""What the source of a module defines, read without importing it.

Listings, help and completion tell what a name is and which keys it takes. They may not import what they tell of: that
costs seconds, and what does not import is to be listed all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

__all__ = ["Definition", "Sources"]

_DEEPEST = 8
"""How often a name may be another module's before the search is given up."""

Path_ = tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a name gets its meaning."""

    module: str
    node: ast.stmt
    """A class, a function or an assignment."""
    doc: str
    """Its docstring, or the one below an assignment."""


class Sources:
    """The modules that can be found on ``path``, by default those that ``import`` finds here."""

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._path: Path_ = None if path is None else tuple(path)

    def find(self, module: str, name: str, depth: int = 0) -> Definition | None:
        """What ``module.name`` is, wherever it is imported from; ``None`` where the sources do not say."""
        head, _, rest = name.partition(".")
        statement, after = _index(module, self._path).get(head, (None, None))
        if statement is None or depth > _DEEPEST:
            return None
        if isinstance(statement, ast.ImportFrom):
            origin = next(each.name for each in statement.names if head in (each.asname, each.name))
            found = self.find(_absolute(statement, module, self._path), origin, depth + 1)
        else:
            found = Definition(module, statement, _doc(statement, after))
        return found if found is None or not rest else self.within(found, rest)

    def within(self, definition: Definition, name: str) -> Definition | None:
        """What the body of a class says of ``name``."""
        if not isinstance(definition.node, ast.ClassDef):
            return None
        head, _, rest = name.partition(".")
        for statement, after in _statements(definition.node.body):
            if head in _names(statement):
                found = Definition(definition.module, statement, _doc(statement, after))
                return self.within(found, rest) if rest else found
        return None

    def target(self, target: str) -> Definition | None:
        """What an entry point's ``module:attribute`` is."""
        module, _, attribute = target.partition(":")
        return self.find(module, attribute) if attribute else None

    def meant(self, node: ast.expr | None, module: str, depth: int = 0) -> Definition | None:
        """What a name in ``module`` stands for, aliases followed."""
        if not isinstance(node, ast.Name | ast.Attribute):
            return None
        found = self.find(module, ast.unparse(node))
        if found is not None and isinstance(found.node, ast.Assign) and depth < _DEEPEST:
            return self.meant(found.node.value, found.module, depth + 1) or found
        return found

    def bases(self, definition: Definition) -> Iterator[Definition]:
        """The classes that a class derives from, as far as their source is there; nearest first."""
        if isinstance(definition.node, ast.ClassDef):
            for base in definition.node.bases:
                found = self.meant(base, definition.module)
                if found is not None and isinstance(found.node, ast.ClassDef):
                    yield found
                    yield from self.bases(found)

    def member(self, definition: Definition, name: str) -> Definition | None:
        """What a class, or the nearest of those that it derives from, says of ``name``."""
        owners = (definition, *self.bases(definition))
        return next((found for owner in owners if (found := self.within(owner, name))), None)


@cache
def _index(module: str, path: Path_) -> dict[str, tuple[ast.stmt, ast.stmt | None]]:
    """The statements that give the names of a module their meaning, each with the one after it."""
    origin = _origin(module, path)
    try:
        body = ast.parse(Path(origin).read_bytes()).body if origin is not None else []
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, tuple[ast.stmt, ast.stmt | None]] = {}
    for statement, after in _statements(body):
        for name in _names(statement):
            found.setdefault(name, (statement, after))
    return found


def _origin(module: str, path: Path_) -> str | None:
    """The source file of a module. Packages on the way to it are looked into, not imported."""
    spec = _spec(module, path)
    return spec.origin if spec is not None and spec.origin and spec.origin.endswith(".py") else None


@cache
def _spec(module: str, path: Path_) -> ModuleSpec | None:
    parent, _, _ = module.rpartition(".")
    if parent:
        holder = _spec(parent, path)
        folders = None if holder is None else holder.submodule_search_locations
        return None if folders is None else PathFinder.find_spec(module, folders)
    try:
        # Of a module that is no package this looks, and imports nothing.
        return PathFinder.find_spec(module, path) if path is not None else find_spec(module)
    except (ImportError, ValueError):
        return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[tuple[ast.stmt, ast.stmt | None]]:
    """The statements of a body, each with the one after it, those under conditions too."""
    for statement, after in zip_longest(body, body[1:]):
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])
        else:
            yield statement, after


def _names(statement: ast.stmt) -> list[str]:
    """What a statement gives a meaning."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return [each.asname or each.name for each in statement.names] if isinstance(statement, ast.ImportFrom) else []


def _doc(statement: ast.stmt, after: ast.stmt | None) -> str:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ast.get_docstring(statement) or ""
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return after.value.value
    return ""


def _absolute(statement: ast.ImportFrom, module: str, path: Path_) -> str:
    """The module that an import names, also where it is relative to ``module``."""
    if not statement.level:
        return statement.module or ""
    spec = _spec(module, path)
    is_package = spec is not None and spec.submodule_search_locations is not None
    parts = module.split(".")
    up = statement.level - is_package
    base = parts[: len(parts) - up] if up else parts
    return ".".join([*base, *([statement.module] if statement.module else [])])
