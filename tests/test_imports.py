"""Imports point one way: a package of core imports only what stands below it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentrl

CORE = Path(agentrl.__file__).parent
LAYERS = (
    {"cli"},
    {"doctor", "scaffold", "testing"},
    {"training"},
    {"reporting"},
    {"learner"},
    {"algorithms"},
    {"runs"},
    {"rewards"},
    {"rollout"},
    {"worker"},
    {"agents", "tasks", "gateway"},
    {"tokens", "inference", "environments"},
    {"plugins"},
    {"config"},
    {"_lazy"},
    {"extras", "processors"},
    {"errors", "environ", "clients", "loops", "redaction"},
)
"""Top to bottom; those of one layer do not import each other."""
LEVEL = {package: level for level, layer in enumerate(LAYERS) for package in layer}
ENTRANCES = {"__init__", "__main__"}
TEMPLATES = CORE / "scaffold" / "templates"
MODULES = sorted(path.relative_to(CORE) for path in CORE.rglob("*.py") if not path.is_relative_to(TEMPLATES))


def package_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """What runs when the module does: imports for a type checker alone are passed over."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        yield from imported(node)


def imports_of(module: Path) -> list[str]:
    return list(imported(ast.parse((CORE / module).read_text(encoding="utf-8"))))


def test_every_package_has_its_place():
    assert {package_of(module) for module in MODULES} - ENTRANCES == set(LEVEL)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_is_below_it(module):
    here = package_of(module)
    names = [name.split(".") for name in imports_of(module)]
    assert not [name for name in names if name[0].startswith("agentrl_")]
    ours = {name[1] for name in names if name[0] == "agentrl" and len(name) > 1}
    if here not in ENTRANCES:
        assert {other for other in ours if other != here and LEVEL[other] <= LEVEL[here]} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.name == "contract.py"], ids=str)
def test_a_contract_needs_at_most_numpy_to_be_installed(module):
    assert {name.split(".")[0] for name in imports_of(module)} <= {*sys.stdlib_module_names, "agentrl", "numpy"}
