"""``agentrl compare``: runs side by side."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from agentrl.cli.root import root
from agentrl.errors import ConfigError
from agentrl.runs.metrics import cut_after
from agentrl.runs.reader import Run


@pytest.fixture
def two(recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """The recorded run, and one that did but a step of it under another learning rate."""
    for name in ("first", "second"):
        shutil.copytree(recorded.path, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("checkpoints"))
    other = tmp_path / "runs" / "second"
    config = (other / "config.yaml").read_text()
    assert "  temperature: 1.0" in config
    (other / "config.yaml").write_text(config.replace("  temperature: 1.0", "  temperature: 0.5", 1))
    cut_after(other / "metrics.jsonl", 1)
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path / "runs" / "first"), Run(other)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    root.main(["compare", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_it_says_what_differs_and_what_came_of_it(two: tuple[Run, Run], capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(told(capsys, "first", "runs/second", "--json"))
    first, second = document["runs"]
    assert list(document["differences"].values()) == [[1.0, 0.5]]
    for run, told_of in zip(two, (first, second), strict=True):
        steps = run.steps()
        assert told_of["steps"] == len(steps)
        assert told_of["reward_first"] == steps[0].metrics["reward/mean"]
        assert told_of["tokens"]["sampled"] == sum(line.metrics["tokens/completion"] or 0 for line in steps)
        assert told_of["seconds"]["steps"] == sum(line.metrics["seconds/step"] or 0 for line in steps)
        assert told_of["cost"] == {"seconds": run.cost.seconds}
        rewards = [line.metrics["evaluation/reward"] for line in run.evaluations()]
        assert [each["reward"] for each in told_of["evaluations"]] == rewards
    heading, *rows = told(capsys, "first", "second").splitlines()
    assert heading.split() == ["first", "second"]
    lines = {" ".join(row.split()[:-2]): row.split()[-2:] for row in rows}
    lines["optimiser steps"] = next(row.split()[-2:] for row in rows if row.startswith("steps "))
    assert lines["optimiser steps"] == ["2/2", "1/2"]
    assert lines[next(iter(document["differences"]))] == ["1.0", "0.5"]
    assert lines["after step 2"][1] == "-"


@pytest.mark.parametrize("width", [60, 100])
def test_it_fits_the_terminal(
    two: tuple[Run, Run], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 24)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert max(map(len, told(capsys, "first", "second").splitlines())) <= width


def test_one_run_is_nothing_to_compare(two: tuple[Run, Run]) -> None:
    with pytest.raises(ConfigError, match="nothing to compare 'first' with"):
        root.main(["compare", "first"], standalone_mode=False)
