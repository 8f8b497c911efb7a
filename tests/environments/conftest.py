"""An empty folder for environments, and one real environment that several tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.environments.projects import AGENT, write_core, write_plugin
from tests.plugins.installing import install

from agentrl.environ import ENVIRONMENTS
from agentrl.environments import Environment, environments


@dataclass
class Told:
    """What a narrator was told."""

    said: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, line: str) -> None:
        self.shown.append(line)


@dataclass(frozen=True)
class Made:
    """A real environment, what it was made of, and what the command that made it said."""

    environment: Environment
    folder: Path
    """Where it is, with nothing else beside it."""
    core: Path
    plugin: Path
    stdout: str
    stderr: str


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where environments are made and found."""
    folder = tmp_path / "environments"
    monkeypatch.setenv(ENVIRONMENTS, str(folder))
    monkeypatch.delenv("AGENTRL_DISABLE_PLUGINS", raising=False)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An environment with a plugin of two agents; a recipe removed what was installed beside it."""
    place = tmp_path_factory.mktemp("real")
    folder = place / "environments"
    core = write_core(place / "core")
    plugin = write_plugin(place / "plugin", "agentrl-sample", first=AGENT, second=AGENT)
    extra = write_plugin(place / "extra", "extra", third=AGENT)
    recipe = "from agentrl.environments import Recipe\nRECIPE = Recipe((), uninstall=('extra', 'never-there'))\n"
    points = {"agentrl.environments": {"sample": "recipe_mod:RECIPE"}}
    install(place / "site", "agentrl-recipes", points, files={"recipe_mod.py": recipe})
    sources = [argument for source in (core, plugin, extra) for argument in ("--from", source)]
    # Of this interpreter's path nothing may reach the new one.
    path = {"PYTHONPATH": os.pathsep.join([str(place / "site"), str(plugin / "src")])}
    done = subprocess.run(
        [sys.executable, "-m", "agentrl", "env", "create", "agentrl-sample", *sources],
        env={**os.environ, **path, ENVIRONMENTS: str(folder), "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (environment,) = environments({ENVIRONMENTS: str(folder)})
    return Made(environment, folder, core, plugin, done.stdout, done.stderr)
