"""What the verb writes does what the verb says: its commands, as printed, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from agentrl.scaffold import PluginKind

KINDS = ("agent", "reward", "backend")
"""Each is trained alone, and learns."""
OTHERS = tuple(kind for kind in get_args(PluginKind) if kind not in KINDS)
"""Together they take part in one run."""

OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""Keeps pip to what this environment has; isolation is off at 0."""

SMALL = {
    "AGENTRL_TRAINING__STEPS": "6",
    "AGENTRL_TRAINING__LEARNING_RATE": "3e-4",
    "AGENTRL_ROLLOUT__TASKS_PER_STEP": "4",
    "AGENTRL_EVALUATION__TASKS": "16",
}

SCRIPT = "#!{python}\nfrom agentrl.cli import main\nmain()\n"


@dataclass(frozen=True)
class Environment:
    """A throwaway environment that has what this one has, and a folder to work in."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Environment:
        venv.create(folder / "env")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        here = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (folder / "env/lib" / version / "site-packages/base.pth").write_text(here)
        script = folder / "env/bin/agentrl"
        script.write_text(SCRIPT.format(python=folder / "env/bin/python"))
        script.chmod(0o755)
        return cls(folder)

    def __call__(self, line: str) -> str:
        """Run a line as a shell does where the environment is active; returns its stdout."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTRL_", "PYTEST_"))}
        path = f"{self.folder / 'env/bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env={**inherited, **OFFLINE, **SMALL, "PATH": path},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_commands_that_it_prints_install_list_test_and_train_it(kind: str, tmp_path: Path) -> None:
    agentrl = Environment.made(tmp_path)
    _, *commands = agentrl(f"agentrl new-plugin sample --kind {kind}").splitlines()
    install, listing, test, train = (command.strip() for command in commands)
    agentrl(install)
    (line,) = [line for line in agentrl(listing).splitlines() if line.startswith("sample ")]
    assert f"agentrl-sample 0.1.0  agentrl_sample.{kind}:Sample{kind.capitalize()}" in line
    assert " passed" in agentrl(test)
    agentrl(train)
    (summary,) = tmp_path.glob("runs/*/summary.json")
    learned = json.loads(summary.read_text())
    assert learned["reward_after"] > learned["reward_before"] + 0.2


def test_a_plugin_of_every_other_kind_takes_part_in_a_run_as_it_is(tmp_path: Path) -> None:
    agentrl = Environment.made(tmp_path)
    printed = {kind: agentrl(f"agentrl new-plugin my-{kind} --kind {kind}").splitlines()[1:] for kind in OTHERS}
    installs, listings, tests, uses = (
        {kind: lines[place].strip() for kind, lines in printed.items()} for place in range(4)
    )
    # Together, which spares time; apart they are the same commands.
    sources = [install.removeprefix("python -m pip install -e ") for install in installs.values()]
    agentrl(f"python -m pip install {' '.join(f'-e {source}' for source in sources)}")
    folders = [test.removeprefix("python -m pytest ") for test in tests.values()]
    assert " passed" in agentrl(f"python -m pytest --import-mode=importlib {' '.join(folders)}")
    listed = {listing: agentrl(listing) for listing in {*listings.values()}}
    for kind, listing in listings.items():
        assert f"my-{kind}" in listed[listing]
    settings = [use.removeprefix("agentrl train math") for use in uses.values() if use.startswith("agentrl train math")]
    agentrl(f"XDG_CACHE_HOME=cache agentrl train math {' '.join(settings)} run.name=all")
    run = tmp_path / "runs/all"
    learned = json.loads((run / "summary.json").read_text())
    assert learned["reward_after"] > learned["reward_before"] + 0.1
    assert (run / "my-tracker.csv").read_text().count("reward/mean") == learned["steps"]
    assert sum(json.loads((run / "my-hooks.json").read_text()).values()) == learned["episodes"]
    config = (run / "config.yaml").read_text()
    assert all(f"my-{kind}" in config for kind in ("tasks", "tracker", "model", "algorithm", "scheduler"))
    assert agentrl(uses["command"]) == f"{learned['reward_after']:.3f}  all\n"
