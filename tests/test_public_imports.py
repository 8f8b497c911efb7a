"""Plugins, templates and examples import only what is public: ``agentrl``, ``agentrl.testing`` and contracts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentrl

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "core" / "agentrl" / "scaffold" / "templates"
MODULES = sorted(
    [
        *ROOT.glob("plugins/*/src/**/*.py"),
        *TEMPLATES.rglob("*.py"),
        *ROOT.glob("examples/**/*.py"),
        *ROOT.glob("recipes/**/*.py"),
    ]
)


def private_imports(source: str) -> Iterator[str]:
    """The imports from core in ``source`` that no third party may rely on, wherever they stand in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if not _is_public(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in (alias.name for alias in node.names):
                is_exported = node.module != "agentrl" or name in agentrl.__all__ or name == "testing"
                if not (is_exported and (_is_public(node.module) or _is_public(f"{node.module}.{name}"))):
                    yield f"from {node.module} import {name}"


def _is_public(module: str) -> bool:
    package, *rest = module.split(".")
    return package != "agentrl" or rest in ([], ["testing"]) or (len(rest) == 2 and rest[1] == "contract")


def test_there_are_modules_of_plugins_and_of_templates() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} >= {"plugins", "core"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_imports_only_what_is_public(path: Path) -> None:
    assert not list(private_imports(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from agentrl import Trainer, hookimpl", []),
        ("from agentrl.testing import AgentConformance", []),
        ("from agentrl.inference.contract import Backend", []),
        ("from agentrl.inference import contract", []),
        ("import agentrl.tasks.contract as tasks", []),
        ("from agentrl_vllm.client import Client", []),
        ("from agentrl import errors", ["from agentrl import errors"]),
        ("from agentrl.errors import AgentError", ["from agentrl.errors import AgentError"]),
        ("def later():\n    import agentrl.loops", ["import agentrl.loops"]),
        ("from agentrl.testing.parts import model_folder", ["from agentrl.testing.parts import model_folder"]),
    ],
)
def test_what_is_private_is_found(source: str, found: list[str]) -> None:
    assert list(private_imports(source)) == found
