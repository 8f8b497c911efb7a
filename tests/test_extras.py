"""A base install: every import of what an extra brings says how to install it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import agentrl
from agentrl.cli.view import NEEDED
from agentrl.config.section import PartModel
from agentrl.errors import PluginError
from agentrl.extras import MissingExtra, missing_extra, missing_extras
from agentrl.plugins import Plugins

CORE = Path(agentrl.__path__[0])
TEMPLATES = CORE / "scaffold" / "templates"
BASE = {
    "click",
    "filelock",
    "httpx",
    "openai",
    "packaging",
    "pluggy",
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "rich",
    "ruamel",
}
"""What the base install brings, as it is imported."""
OTHERS = {
    "latex2mathml": "view",
    "markdown_it": "view",
    "markupsafe": "view",
    "plotly": "view",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""The extras of packages that the extra ``train`` does not bring."""
VIEW = {name for name, extra in OTHERS.items() if extra == "view"} | {"jinja2", "starlette", "uvicorn"}
"""What the extra ``view`` brings, some of it as ``train`` does."""
TEST_TOOLS = {"pytest", "_pytest"}

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(","), None))
from agentrl.cli import main
main(sys.argv[2:])
"""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@cache
def optional() -> list[str]:
    """The packages that some module of core imports, and a base install does not have."""
    files = [path for path in CORE.rglob("*.py") if not path.is_relative_to(TEMPLATES)]
    found = {name.partition(".")[0] for path in files for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    return sorted(found - BASE - TEST_TOOLS - {"agentrl", "agentrl_agents"} - set(sys.stdlib_module_names))


def test_the_base_install_is_what_it_was_taken_for() -> None:
    declared = [line for line in metadata.requires("agentrl-core") or () if "extra ==" not in line]
    installed = metadata.packages_distributions()
    distributions = {dist for module in BASE for dist in installed[module]}
    assert {line.split(">")[0].lower() for line in declared} <= {dist.lower() for dist in distributions}
    assert {"torch", "psutil", "uvicorn", "tensorboard", "datasets", "reasoning_gym", "math_verify"} <= {*optional()}


@pytest.mark.parametrize("arguments", ["train math", "eval tiny agent=math", "doctor math", "view"])
def test_a_base_install_says_what_to_install_and_exits_with_3(arguments: str) -> None:
    command = [sys.executable, "-c", WITHOUT, ",".join(optional()), *arguments.split()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = result.stdout + result.stderr
    assert result.returncode == 3, told
    assert "Traceback" not in told
    if arguments.startswith("doctor"):  # Which reads what is installed from the metadata.
        assert "problem  importing torch raised ModuleNotFoundError" in told
    else:
        assert result.stderr.startswith("error: ")
        extra = "view" if arguments == "view" else "train"
        assert result.stderr.endswith(f"(pip install 'agentrl-core[{extra}]')\n")
        assert (result.stdout, result.stderr.count("\n")) == ("", 1)


def test_the_page_asks_for_what_its_extra_brings_and_for_nothing_else() -> None:
    listed = [each for each in metadata.requires("agentrl-core") or [] if 'extra == "view"' in each]
    found = metadata.packages_distributions()
    bringing = {canonicalize_name(name) for module in NEEDED for name in found[module]}
    assert {canonicalize_name(Requirement(each).name) for each in listed} == bringing
    assert set(NEEDED) == VIEW


@pytest.mark.parametrize("module", optional())
def test_every_optional_import_of_core_is_told_with_the_extra_that_brings_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught, missing_extras():
        exec(f"import {module}.of_it", {"__name__": "agentrl.somewhere"})
    extra = OTHERS.get(module, "train")
    assert str(caught.value) == (
        f"{module} is not installed: it comes with agentrl-core[{extra}] (pip install 'agentrl-core[{extra}]')"
    )
    assert caught.value.exit_code == 3
    assert isinstance(caught.value, PluginError)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("kind", "part", "module", "extra"),
    [
        ("rewards", {"name": "math-verify"}, "math_verify", "train"),
        ("rewards", {"name": "reasoning-gym"}, "reasoning_gym", "train"),
        ("tasks", {"name": "reasoning-gym", "dataset": "leg_counting"}, "reasoning_gym", "train"),
        ("tasks", {"name": "datasets", "path": "x"}, "datasets", "train"),
        ("trackers", {"name": "tensorboard"}, "tensorboard", "tensorboard"),
        ("trackers", {"name": "trackio"}, "trackio", "trackio"),
        ("trackers", {"name": "wandb"}, "wandb", "wandb"),
        ("backends", {"name": "torch"}, "torch", "train"),
    ],
)
def test_a_part_whose_package_is_not_installed_says_which_extra_brings_it(
    kind: str, part: dict[str, Any], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("agentrl.rewards.reasoning", "agentrl.inference.engine.backend"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(PluginError, match=f"{module} is not installed: it comes with agentrl-core") as caught:
        Plugins().build(kind, PartModel.model_validate(part))
    assert caught.value.fix == f"pip install 'agentrl-core[{extra}]'"


def test_a_script_of_a_base_install_is_told_too() -> None:
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(sys.argv[1].split(','), None))\n"
        "try:\n    from agentrl import Trainer\nexcept ImportError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, ",".join(optional())]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith("(pip install 'agentrl-core[train]')\n"), result.stderr


def test_what_others_import_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    (tmp_path / "mine.py").write_text("import uvicorn\n")
    with pytest.raises(PluginError, match=r"raised ModuleNotFoundError.*\(install 'uvicorn' for "):
        Plugins().get("agents", f"{tmp_path}/mine.py:Agent")
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught, missing_extras():
        exec("import agentrl.no_such_module", {"__name__": "agentrl.somewhere"})
    assert missing_extra(caught.value) is None
