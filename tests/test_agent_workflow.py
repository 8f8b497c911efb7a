"""The quick start of `examples/agent_workflow`, typed with an interpreter that has no agentrl."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = "python3 examples/agent_workflow/train.py --config examples/agent_workflow/config.yaml scheduler.type=local"
FEW_STEPS = "training.steps=1 rollout.tasks_per_step=1 rollout.group_size=2 rollout.max_tokens=8 evaluation.tasks=2"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout's examples, without an environment."""
    shutil.copytree(ROOT / "examples/agent_workflow", tmp_path / "examples/agent_workflow")
    return tmp_path


def run(clone: Path, settings: str = "") -> subprocess.CompletedProcess[str]:
    """Type the command, where `python3` is an interpreter that has nothing but its standard library."""
    program, *arguments = f"{COMMAND} {settings}".split()
    python = Path(sys.base_prefix) / "bin" / program
    return subprocess.run([python, "-S", *arguments], cwd=clone, capture_output=True, text=True, env=environment())


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AGENTRL_", "PYTHON"))}


def test_the_command_of_the_readme_trains_the_agent_once_the_environment_is_made(clone: Path) -> None:
    assert COMMAND in (ROOT / "README.md").read_text()
    (clone / ".venv").symlink_to(sys.prefix)
    done = run(clone, FEW_STEPS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("held-out reward 0.")
    (folder,) = (clone / "runs").iterdir()
    assert folder.name.startswith("agentrl_agents.math.MathAgent-")
    assert (folder / "checkpoints/step-000001").is_dir()


def test_without_an_environment_the_command_that_makes_one_is_named(clone: Path) -> None:
    done = run(clone)
    assert done.returncode == 1
    assert done.stderr.startswith("error: agentrl is not installed for ")
    assert done.stderr.endswith(f"and {clone}/.venv has none: run `make setup` first\n")


def test_an_environment_without_agentrl_is_not_asked_for_ever(clone: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    assert "run `make setup` first" in run(clone).stderr


def test_what_is_wrong_with_a_setting_is_one_line(clone: Path) -> None:
    (clone / ".venv").symlink_to(sys.prefix)
    done = run(clone, "rollout.openai.mode=subproc")
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: there is no key 'rollout.openai.mode' (here AReaL's rollout.op")
    assert done.stderr.count("\n") == 1
