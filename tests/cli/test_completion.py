"""What the shells complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.test_listing import HEAVY, REPORT

from agentrl.cli import VARIABLE
from agentrl.cli.completion import _Fish as Shell
from agentrl.cli.root import App, root
from agentrl.plugins import Plugins

Complete = Callable[[str], list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for run, steps in {"first": ("000010", "000020"), "second": ()}.items():
        for step in steps:
            (tmp_path / "runs" / run / f"checkpoints/step-{step}").mkdir(parents=True)
        (tmp_path / "runs" / run).mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / run / "config.yaml").write_text("")
    (tmp_path / "my_agent.py").write_text(
        "class Agent:\n    async def run(self, data, *, api_key, depth: int = 2): ...\n"
    )
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTRL_ENVIRONMENTS", str(tmp_path / "environments"))
    # What else is installed here has names of its own.
    others = {entry.distribution.name for entry in Plugins().installed} - {"agentrl-core"}
    monkeypatch.setenv("AGENTRL_DISABLE_PLUGINS", ",".join(others))
    return tmp_path


@pytest.fixture
def complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What stands for the end of a line."""

    def completed(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", f"agentrl {line}")
        monkeypatch.setenv("AGENTRL_DEBUG", "1")
        text = Shell(root, {"obj": App()}, "agentrl", VARIABLE).complete()
        return [candidate.partition("\t")[0] for candidate in text.splitlines()]

    return completed


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("tra", ["train"]),
        ("sft runs/fi", ["runs/first"]),
        ("sft runs/first sft.lo", ["sft.loss="]),
        ("sft runs/first sft.loss=", ["sft.loss=all", "sft.loss=last"]),
        ("replay runs/first --algorithm rl", ["rloo"]),
        ("replay runs/first --reward numeric", ["numeric-match"]),
        ("list-ag", ["list-agents"]),
        ("train ", ["calculator", "math", "multi_turn_math", "models/", "my_agent.py", "runs/"]),
        ("train ma", ["math"]),
        ("train my", ["my_agent.py"]),
        ("doctor cal", ["calculator"]),
        ("train math rollout.gr", ["rollout.group_size="]),
        ("train rollout.gr", ["rollout.group_size="]),
        ("train math seed=1 see", []),
        ("train math rollout.mode=", ["rollout.mode=auto", "rollout.mode=inline", "rollout.mode=subproc"]),
        ("train math training.schedule=co", ["training.schedule=constant", "training.schedule=cosine"]),
        ("train math inference.backend=t", ["inference.backend=torch"]),
        ("train math inference.backend.dt", ["inference.backend.dtype="]),
        (
            "train math inference.backend.dtype=f",
            ["inference.backend.dtype=float32", "inference.backend.dtype=float16"],
        ),
        ("train math inference.backend=openai inference.backend.u", ["inference.backend.url="]),
        ("train math reward=numeric-match reward.to", ["reward.tolerance="]),
        ("train math reward=exact-match reward.ignore_case=", ["reward.ignore_case=true", "reward.ignore_case=false"]),
        ("train math algorithm.objective=cl", ["algorithm.objective=clip"]),
        ("train math algorithm.objective.clip_h", ["algorithm.objective.clip_high="]),
        ("train calculator agent.kwargs.", ["agent.kwargs.max_turns="]),
        ("train my_agent.py:Agent agent.kwargs.", ["agent.kwargs.depth="]),
        ("train math trackers=", ["trackers=[tensorboard]", "trackers=[trackio]", "trackers=[wandb]"]),
        ("train math gateway.normalise=cl", []),
        (
            "train math gateway.normalise=[cl",
            [f"gateway.normalise=[{each}]" for each in ("claude-code-billing-header", "clock-times")],
        ),
        ("train math tasks.train=my", ["tasks.train=my_agent.py"]),
        ("train math tasks.train=arith", ["tasks.train=arithmetic", "tasks.train=arithmetic-heldout"]),
        ("train math model=", ["model=tiny", "model=runs/first", "model=runs/second", "model=models/", "model=runs/"]),
        ("train math run.dir=mo", ["run.dir=models/"]),
        ("train math --config no", ["notes.txt"]),
        ("train math --dr", ["--dry-run"]),
        ("eval runs/", ["runs/first", "runs/second"]),
        ("eval runs/first/", ["runs/first/checkpoints/step-000010", "runs/first/checkpoints/step-000020"]),
        ("eval runs/first evaluation.ta", ["evaluation.tasks="]),
        ("config rollout.gr", ["rollout.group_size"]),
        ("config tas", ["tasks", "tasks.eval", "tasks.eval.name", "tasks.train", "tasks.train.name"]),
        ("config inference.backend=", ["inference.backend=openai", "inference.backend=torch"]),
        ("env remove ", []),
    ],
)
def test_names_keys_and_runs_are_completed(complete: Complete, line: str, candidates: list[str]) -> None:
    assert complete(line) == candidates


def test_completion_imports_nothing_heavy_and_no_plugin(folder: Path) -> None:
    report = folder / "modules"
    environ = {**os.environ, VARIABLE: "fish_complete", "COMP_LINE": "agentrl train math inference.backend.d"}
    command = [sys.executable, "-c", REPORT.format(path=str(report))]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert "inference.backend.dtype=" in result.stdout, result.stderr
    modules = set(report.read_text().split())
    assert not modules & {*HEAVY, "agentrl.inference.engine.backend", "agentrl_agents"}


def test_what_fails_completes_nothing_and_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTRL_DEBUG", raising=False)
    monkeypatch.setenv("COMP_LINE", "agentrl train ma")
    monkeypatch.setattr("agentrl.cli.completion.Catalogue", None)
    assert Shell(root, {"obj": App()}, "agentrl", VARIABLE).complete() == ""


BASH = """
eval "$(_AGENTRL_COMPLETE=bash_source {agentrl})"
compopt() {{ echo "$@"; }}
try() {{ COMP_LINE="$1"; COMP_POINT=${{#1}}; COMPREPLY=(); _agentrl_completion {agentrl}; echo "${{COMPREPLY[*]}}"; }}
try "agentrl train math rollout.mode=in"
try "agentrl train math rollout.max_wo"
try "agentrl eval runs/f"
"""
FISH = """
_AGENTRL_COMPLETE=fish_source {agentrl} | source
for line in "agentrl train math rollout.mode=in" "agentrl eval runs/f"
    complete -C $line
end
"""


@pytest.mark.parametrize(
    ("shell", "script", "expected"),
    [
        ("bash", BASH, ["inline", "-o nospace", "rollout.max_workers=", "runs/first"]),
        ("fish", FISH, ["rollout.mode=inline", "runs/first"]),
    ],
)
def test_a_shell_completes_what_it_is_given(folder: Path, shell: str, script: str, expected: list[str]) -> None:
    found = shutil.which(shell)
    if found is None or not (agentrl := Path(sys.executable).with_name("agentrl")).exists():
        pytest.skip(f"{shell} or the command is not installed")
    environ = {**os.environ, "PATH": f"{agentrl.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    command = [found, "-c", script.format(agentrl="agentrl")]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    if "not supported" in result.stderr:
        pytest.skip("this bash is too old")
    assert result.stdout.splitlines() == expected, result.stderr


def test_the_script_of_zsh_keeps_keys_and_folders_open() -> None:
    environ = {**os.environ, VARIABLE: "zsh_source"}
    result = subprocess.run([sys.executable, "-m", "agentrl"], capture_output=True, text=True, env=environ, timeout=60)
    assert "compadd -V agentrl -l -d open_told -S '' -a open" in result.stdout
    if (zsh := shutil.which("zsh")) is not None:
        assert subprocess.run([zsh, "-n"], input=result.stdout, text=True, capture_output=True, timeout=60).stderr == ""
