"""``metrics.jsonl`` holds whole lines of plain numbers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import RunError
from agentrl.runs.contract import MetricsLine
from agentrl.runs.metrics import MetricsLog, MetricsReader, cut_after


def test_a_line_holds_step_time_and_flat_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, clock=lambda: 1764000000.12345) as log:
        log.append(1, {"reward/mean": 0.25, "rollout/episodes": 64, "policy/mismatch_kl": 3.2e-8})
        assert path.read_text() == (
            '{"step": 1, "time": 1764000000.123, "reward/mean": 0.25, "rollout/episodes": 64, '
            '"policy/mismatch_kl": 3.2e-08}\n'
        )


def test_numbers_of_other_libraries_are_numbers_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append(1, {"a": np.float32(0.5), "b": np.int64(3), "c": math.nan, "d": -math.inf, "e": True})
    (row,) = MetricsReader(tmp_path / "metrics.jsonl").read()
    assert {name: row.metrics[name] for name in "abcde"} == {"a": 0.5, "b": 3.0, "c": None, "d": None, "e": 1}


def test_a_second_log_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        with MetricsLog(tmp_path / "metrics.jsonl") as log:
            log.append(step, {})
    assert [row.step for row in MetricsReader(tmp_path / "metrics.jsonl").read()] == [1, 2]


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float]
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    metrics = {name: value for name, value in metrics.items() if name not in {"step", "time"}}
    with MetricsLog(path, clock=lambda: 5.0) as log:
        log.append(7, metrics)
    assert MetricsReader(path).read() == [MetricsLine(7, 5.0, metrics)]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 5}\n{"step": 2, "rew')
    assert MetricsReader(tmp_path / "metrics.jsonl").read() == [MetricsLine(1, 5, {})]


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 5}\n{"step": \n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2 is not JSON"):
        MetricsReader(tmp_path / "metrics.jsonl").read()


@pytest.mark.parametrize("name", ["step", "time"])
def test_a_metric_may_not_hide_what_every_line_has(tmp_path: Path, name: str) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(ValueError, match=f"called {name}"):
        log.append(1, {name: 1.0})


def test_a_disk_that_fills_is_named_and_leaves_whole_lines(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from agentrl.errors import RunError
from agentrl.runs.metrics import MetricsLog
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
log = MetricsLog(Path(sys.argv[1]))
try:
    for step in range(100):
        log.append(step, {"reward/mean": 0.5})
except RunError as error:
    print(error)
"""
    path = tmp_path / "metrics.jsonl"
    filling = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert filling.stdout.startswith(f"cannot write {path}: File too large (free some space")
    text = path.read_text()
    assert text.endswith("}\n")
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(len(text.splitlines())))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(RunError, match="No space left on device"):
        log.append(1, {})


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    assert reader.read() == []
    with MetricsLog(path) as log:
        for step in (1, 2):
            log.append(step, {})
            assert [line.step for line in reader.read()] == list(range(1, step + 1))
    path.write_text('{"step": 9, "time": 5}\n')
    assert reader.read() == [MetricsLine(9, 5, {})]


def test_a_line_without_its_step_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"time": 5}\n')
    with pytest.raises(RunError, match="line 1 is not a JSON object with a step and a time"):
        MetricsReader(tmp_path / "metrics.jsonl").read()


def test_lines_of_later_steps_are_cut_and_told_and_one_that_was_not_finished_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step, name in ((0, "evaluation/reward"), (1, "a"), (2, "a"), (2, "evaluation/reward"), (3, "a")):
            log.append(step, {name: 0.1 + 0.2, "gone": math.nan})
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"step": 4, "ti')
    reader = MetricsReader(path)
    before = reader.read()
    cut = cut_after(path, 2)
    assert [line.step for line in cut] == [3]
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]
    with MetricsLog(path) as log:
        for step in range(3, 9):
            log.append(step, {"a": 1.0})
    assert reader.read()[:4] == before[:4]
    assert [line.step for line in reader.read()[4:]] == list(range(3, 9))


def test_a_run_without_metrics_has_none_to_cut(tmp_path: Path) -> None:
    assert cut_after(tmp_path / "metrics.jsonl", 0) == []
