"""Environments as ``agentrl env create`` leaves them behind, without the time that it takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.plugins.installing import install

from agentrl.environments.environment import Manifest, write_manifest
from agentrl.plugins.entries import CORE, core_version

MANIFEST = Manifest("3.11.4", None, (), False, "2026-11-24T09:00:00+00:00")


def write_environment(folder: Path, *, core: str | None = None, manifest: Manifest | None = MANIFEST) -> Path:
    """A complete environment of the interpreter that runs the tests, with core and nothing else; returns its site."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text("")
    site = folder / "lib" / "python3.11" / "site-packages"
    install(site, CORE, {"agentrl.agents": {"math": "agentrl_agents.math:MathAgent"}}, version=core or core_version())
    if manifest is not None:
        write_manifest(folder, manifest)
    return site


def write_camel(folder: Path, name: str = "agentrl-camel", agents: tuple[str, ...] = ("camel-math",)) -> Path:
    """An environment with a plugin that has ``agents``."""
    site = write_environment(folder)
    entry_points: Mapping[str, Mapping[str, str]] = {
        "agentrl.agents": dict.fromkeys(agents, "camel_mod:Agent"),
        "agentrl.plugins": {"camel-hooks": "camel_mod"},
    }
    install(site, name, entry_points, version="0.3", requires=("agentrl-core>=0.1",))
    return site
