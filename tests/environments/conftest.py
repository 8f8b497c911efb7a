"""An empty folder for environments, and one real environment that several tests look at."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.environments.projects import AGENT, write_core, write_plugin

from agentrl.environ import ENVIRONMENTS
from agentrl.environments.creating import Created, Wish, create_environment
from agentrl.plugins import Plugins


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
    """A real environment, and what it was made of."""

    created: Created
    told: Told
    folder: Path
    """Where it is, with nothing else beside it."""
    core: Path
    plugin: Path


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
    """An environment with an agent that loads and one that does not."""
    folder = tmp_path_factory.mktemp("real")
    core = write_core(folder / "sources" / "core")
    agents = {"works": AGENT, "fails": "print('noise')\nimport no_such_framework\n"}
    plugin = write_plugin(folder / "sources" / "plugin", "agentrl-sample", **agents)
    told = Told()
    with pytest.MonkeyPatch.context() as patch:
        # As a user's shell may have it: neither may reach the new interpreter.
        patch.setenv("PYTHONPATH", os.pathsep.join(["", str(plugin / "src")]))
        patch.setenv(ENVIRONMENTS, str(folder / "environments"))
        patch.setenv("PIP_NO_INDEX", "1")
        created = create_environment(Wish("agentrl-sample", (str(core), str(plugin))), Plugins(), told)
    return Made(created, told, folder / "environments", core, plugin)
