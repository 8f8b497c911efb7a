"""Imports point one way: a package of core imports only what stands below it, and anybody's contract.

A contract says what passes between two packages. It imports only the standard library, numpy, typing,
``agentrl.errors`` and other contracts, so it costs nothing to import and ties nobody to the package that it is in.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import agentrl

CORE = Path(agentrl.__file__).parent
ROOT = Path(__file__).parents[1]
LAYERS = (
    {"cli"},
    {"doctor", "scaffold", "testing", "view"},
    {"training"},
    {"reporting"},
    {"health", "runs"},
    {"rewards"},
    {"rollout", "algorithms", "learner"},
    {"worker"},
    {"agents", "tasks", "gateway"},
    {"tokens", "inference", "environments"},
    {"plugins"},
    {"costs"},
    {"config"},
    {"_lazy"},
    {"hosting"},
    {"extras", "listening", "machine"},
    {"errors", "environ", "locks", "clients", "loops", "redaction", "supervision", "threads"},
)
"""Top to bottom; those of one layer do not import each other."""
LEVEL = {package: level for level, layer in enumerate(LAYERS) for package in layer}
ONLY = {
    "algorithms": {"config", "plugins", "errors"},
    "learner": {"config", "errors", "extras", "inference", "machine", "threads"},
}
"""Packages that know fewer than all that stand below them."""
BROUGHT = {"huggingface-hub", "numpy", "pydantic-core", "tokenizers"}
"""Distributions that transformers and pydantic, which core declares, cannot do without."""
ENTRANCES = {"__init__", "__main__"}
TEMPLATES = CORE / "scaffold" / "templates"
MODULES = sorted(path.relative_to(CORE) for path in CORE.rglob("*.py") if not path.is_relative_to(TEMPLATES))
CONTRACTS = [module for module in MODULES if module.name == "contract.py"]


def package_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported when the module runs: imports for a type checker alone are passed over."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if is_module(name) else node.module for name in names)
        yield from imported(node)


def is_module(name: str) -> bool:
    """Whether ``name`` is a module of core: ``from agentrl.learner import packing`` imports one."""
    path = CORE.joinpath(*name.split(".")[1:])
    return name.startswith("agentrl.") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def imports_of(module: Path) -> list[str]:
    return list(imported(ast.parse((CORE / module).read_text(encoding="utf-8"))))


def is_contract(name: str) -> bool:
    return name.startswith("agentrl.") and name.endswith(".contract")


def test_every_package_has_its_place():
    assert {package_of(module) for module in MODULES} - ENTRANCES == set(LEVEL)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_is_below_it(module):
    here = package_of(module)
    names = imports_of(module)
    assert not [name for name in names if name.startswith("agentrl_")]
    parts = [name.split(".") for name in names if name.startswith("agentrl.") and not is_contract(name)]
    others = {name[1] for name in parts} - {here}
    if here not in ENTRANCES:
        assert {other for other in others if LEVEL[other] <= LEVEL[here]} == set()
    assert others <= ONLY.get(here, others)


@pytest.mark.parametrize("module", CONTRACTS, ids=str)
def test_a_contract_imports_the_standard_library_numpy_errors_and_other_contracts(module):
    """Each contract is held to it, so what one imports by way of others is too."""
    for name in imports_of(module):
        if name.startswith("agentrl."):
            assert is_contract(name) or name == "agentrl.errors", name
        else:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "numpy"}, name


@pytest.mark.parametrize("root", [CORE, ROOT / "agents"], ids=["core", "agents"])
def test_it_imports_no_third_party_that_the_distribution_does_not_declare(root):
    """What only happens to be installed beside core, by another package or by hand, is missing on a fresh machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: listed for name, listed in project["optional-dependencies"].items() if name != "dev"}
    declared = {
        canonicalize_name(Requirement(each).name) for each in chain(project["dependencies"], *extras.values())
    } | BROUGHT
    distributions = metadata.packages_distributions()
    undeclared = {
        (str(module), name)
        for module in root.rglob("*.py")
        if not module.is_relative_to(TEMPLATES)
        for name in third_parties(ast.parse(module.read_text(encoding="utf-8"))) - {"agentrl_agents"}
        if not declared & {canonicalize_name(found) for found in distributions.get(name, [name])}
        and not (name == "pytest" and module.is_relative_to(CORE / "testing"))
    }
    assert undeclared == set()


def third_parties(tree: ast.AST) -> set[str]:
    """The packages of others that are imported anywhere in a module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"agentrl"}


def test_contracts_need_nothing_but_core_to_be_installed():
    """As the interpreter sees it, the ``__init__`` of their packages included."""
    contracts = [".".join(["agentrl", *module.with_suffix("").parts]) for module in CONTRACTS]
    code = f"import sys, {', '.join(contracts)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "transformers", "numpy", "pydantic", "httpx", "openai"} & set(done.stdout.split())
