"""Training through the framework as it is: the examples, and a native agent that nobody registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentrl import Trainer, load_config
from agentrl.cli import main

NATIVE = Path(__file__).with_name("native.py")


@pytest.mark.parametrize("agent", ["openai-agents-calculator", "openai-agents-handoff"])
def test_an_example_learns_within_a_few_steps(agent: str, tmp_path: Path) -> None:
    small = ("training.steps=8", "rollout.group_size=16", "rollout.tasks_per_step=4", "evaluation.tasks=64")
    with Trainer(load_config(None, *small, f"run.dir={tmp_path}", "run.name=run", agent=agent)) as trainer:
        summary = trainer.train()
    assert (summary.outcome, summary.steps) == ("completed", 8)
    assert summary.reward_after > summary.reward_before + 0.05
    for step in steps(tmp_path / "run"):
        assert step["tokens/trained"] == step["tokens/completion"]
        assert step["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("mode", ["inline", "subproc"])
def test_the_command_line_trains_a_native_agent(mode: str, tmp_path: Path, capsys: Any) -> None:
    small = ("training.steps=2", "rollout.group_size=4", "rollout.tasks_per_step=4", "rollout.max_workers=1")
    code = command_line(f"{NATIVE}:adder", "reward=numeric-match", *small, "evaluation.tasks=8", f"run.dir={tmp_path}",
                        "run.name=run", f"rollout.mode={mode}")  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert [step["rollout/episodes"] for step in steps(tmp_path / "run")] == [16, 16]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["outcome"] == "completed"


def test_a_native_agent_without_a_reward_is_refused_before_there_is_a_run(tmp_path: Path, capsys: Any) -> None:
    assert command_line(f"{NATIVE}:adder", f"run.dir={tmp_path}") == 2
    assert "reward" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def command_line(*arguments: str) -> object:
    """The exit code of ``agentrl train``."""
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments])
    return ended.value.code


def steps(run: Path) -> list[dict[str, float]]:
    """The metrics of each training step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "rollout/episodes" in line]
