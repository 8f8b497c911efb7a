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

import pytest

KINDS = ("agent", "reward", "backend")

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
