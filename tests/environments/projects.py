"""Python projects that pip builds without a network: each has its build backend beside it."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import agentrl
from agentrl.plugins.entries import CORE, core_version

BACKEND = '''
"""Packs ``src`` into a wheel, and leaves a mess behind as real backends do."""
import os, pathlib, time, tomllib, zipfile

PROJECT = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
NAME = PROJECT["name"].replace("-", "_")
STEM = f"{NAME}-{PROJECT['version']}"


def build_wheel(directory, config_settings=None, metadata_directory=None):
    files = {str(p.relative_to("src")): p.read_text() for p in pathlib.Path("src").rglob("*") if p.is_file()}
    return pack(directory, files)


def build_editable(directory, config_settings=None, metadata_directory=None):
    return pack(directory, {f"_{NAME}.pth": str(pathlib.Path("src").absolute())})


def pack(directory, files):
    pathlib.Path("build").mkdir(exist_ok=True)
    pathlib.Path(f"{NAME}.egg-info").mkdir(exist_ok=True)
    while pathlib.Path("slow").exists():
        time.sleep(0.1)
    info = f"{STEM}.dist-info"
    requires = "".join(f"Requires-Dist: {line}\\n" for line in PROJECT.get("dependencies", []))
    points = "".join(
        f"[{group}]\\n" + "".join(f"{name} = {target}\\n" for name, target in entries.items())
        for group, entries in PROJECT.get("entry-points", {}).items()
    )
    name = f"Name: {PROJECT['name']}\\nVersion: {PROJECT['version']}\\n"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\\n{name}{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": points,
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(pathlib.Path(directory, f"{STEM}-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return f"{STEM}-py3-none-any.whl"
'''

AGENT = "class Agent:\n    async def run(self, data):\n        return 1.0\n"


def write_project(
    folder: Path,
    name: str,
    entry_points: Mapping[str, Mapping[str, str]],
    files: Mapping[str, str],
    *,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
) -> Path:
    """A project in ``folder`` whose modules are ``files``."""
    tables = "".join(
        f'\n[project.entry-points."{group}"]\n'
        + "".join(f"{json.dumps(entry)} = {json.dumps(target)}\n" for entry, target in entries.items())
        for group, entries in entry_points.items()
    )
    (folder / "src").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\ndependencies = {json.dumps(requires)}\n{tables}'
    )
    (folder / "backend.py").write_text(BACKEND)
    for path, text in files.items():
        (folder / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / path).write_text(text)
    return folder


def write_core(folder: Path, *, version: str | None = None) -> Path:
    """agentrl-core as a project that leads to the code and the dependencies of the interpreter that runs the tests."""
    paths = [str(Path(agentrl.__file__).parents[1]), sysconfig.get_path("purelib")]
    entries = {"agentrl.agents": {"math": "agentrl_agents.math:MathAgent"}}
    return write_project(
        folder, CORE, entries, {"core-of-the-tests.pth": "\n".join(paths)}, version=version or core_version()
    )


def write_plugin(folder: Path, name: str, **agents: str) -> Path:
    """A plugin with a module for each of its ``agents``: the text of the module by the name of the agent."""
    entries = {agent: f"{agent}_module:Agent" for agent in agents}
    files = {f"{agent}_module.py": text for agent, text in agents.items()}
    return write_project(
        folder, name, {"agentrl.agents": entries}, files, version="0.3", requires=("agentrl-core>=0.1",)
    )
