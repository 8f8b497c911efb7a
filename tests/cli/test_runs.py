"""``agentrl runs``: every run with its state."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentrl.cli.root import root
from agentrl.config import load_config
from agentrl.runs.contract import RunState, Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.store import EpisodeStore

SPEED = {"tokens/completion": 400.0, "seconds/step": 2.0}


def made(place: Path, name: str, age: int, outcome: str | None) -> RunFolder:
    """A run that began ``age`` seconds ago, with two steps and two evaluations."""
    config = load_config(None, f"run.dir={place}", f"run.name={name}", "training.steps=4", environ={})
    folder = RunFolder.create(config)
    EpisodeStore(folder.episodes).close()
    with MetricsLog(folder.metrics) as log:
        for step, metrics in ((0, {"evaluation/reward": 0.25}), (1, {}), (2, SPEED), (2, {"evaluation/reward": 0.75})):
            log.append(step, metrics)
    if outcome is not None:
        folder.write_summary(Summary(outcome))
    os.utime(folder.config, (1_000_000_000 - age,) * 2)
    return folder


STATES: dict[str, RunState] = {"completed": "completed", "interrupted": "interrupted", "failed: no": "failed"}


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    root.main(["runs", *arguments], standalone_mode=False)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_every_run_is_listed_with_its_state_the_last_one_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, (outcome, state) in enumerate(STATES.items()):
        made(tmp_path, state, age, outcome)
    made(tmp_path, "killed", 7, None)
    with EpisodeStore(made(tmp_path, "going-on", 9, None).episodes):
        out, err = listed(capsys, str(tmp_path))
        told = json.loads(listed(capsys, str(tmp_path), "--json")[0])["runs"]
        assert listed(capsys, f"run.dir={tmp_path}") == (out, err)
    rows = [line.split() for line in out.splitlines() if not line.startswith(" ")]
    assert rows[0] == ["name", "state", "steps", "reward", "tokens/s", "agent", "model", "started"]
    assert [row[:2] for row in rows[1:]] == [
        ["going-on", "running"],
        ["killed", "killed"],
        ["failed", "failed"],
        ["interrupted", "interrupted"],
        ["completed", "completed"],
    ]
    assert all(row[2:8] == ["2/4", "0.250", "→", "0.750", "200", "math"] for row in rows[1:])
    assert "\n    failed: no\n" in out
    assert "agentrl train --resume NAME" in err
    assert [(each["name"], each["state"]) for each in told] == [tuple(row[:2]) for row in rows[1:]]
    assert told[0] | {"path": "", "started": ""} == {
        "name": "going-on",
        "path": "",
        "kind": "training",
        "state": "running",
        "steps": 2,
        "steps_to_do": 4,
        "reward_before": 0.25,
        "reward": 0.75,
        "loss_before": None,
        "loss": None,
        "tokens_per_second": 200.0,
        "agent": "math",
        "model": "tiny",
        "started": "",
        "outcome": None,
        "checkpoint": None,
        "cost": {},
        "error": None,
    }


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "fine", 1, "completed")
    made(tmp_path, "odd", 2, "completed").config.write_text("seeds: 3\n")
    made(tmp_path, "torn", 3, "completed").metrics.write_text("{\n")
    out, _ = listed(capsys, str(tmp_path))
    assert "there is no key 'seeds'" in out
    assert "line 1 is not JSON" in out
    assert [line.split()[1] for line in out.splitlines() if not line.startswith(" ")][1:] == ["completed"] * 3


def test_no_runs_are_no_error_and_no_folder_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, str(tmp_path)) == ("", f"there are no runs in {tmp_path}\n")
    with pytest.raises(Exception, match=r"there is no folder .*nowhere"):
        listed(capsys, str(tmp_path / "nowhere"))
