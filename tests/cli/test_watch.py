"""``agentrl watch``: a run that another process trains, shown from its folder alone."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.cli.root import App, root
from agentrl.errors import RunError
from agentrl.reporting.follower import Follower
from agentrl.reporting.plain import Progress
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog, cut_after
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
PATIENCE_S = 60


@pytest.fixture
def folder(recorded: Run, tmp_path: Path) -> RunFolder:
    """A copy of the recorded run as it was after its first step."""
    copied = RunFolder(tmp_path / "runs" / "copied")
    shutil.copytree(recorded.path, copied.path, ignore=shutil.ignore_patterns("checkpoints", "summary.json"))
    cut_after(copied.metrics, 1)
    return copied


def go_on(folder: RunFolder, store: EpisodeStore) -> None:
    """What a run does in its second step: a failed episode, a finding of learning health, and the step's metrics."""
    failed = Episode(EpisodeKey("train", 90, 0, 0), {}, "failed", None, failure=Failure("agent", "no\x1b[31m file"))
    store.submit([failed]).result()
    with (folder.logs / "run.log").open("a", encoding="utf-8") as log:
        log.write("2026-11-29 18:43:14 warning: health: truncation: completions were cut\n")
        log.write("2026-11-29 18:43:14 note: something of note\n")
    with MetricsLog(folder.metrics) as metrics:
        metrics.append(2, {"reward/mean": 0.625, "seconds/step": 1.0})


def watch(folder: RunFolder) -> list[str]:
    return [sys.executable, "-m", "agentrl", "watch", str(folder.path)]


def test_what_is_known_of_a_run_from_its_folder_is_what_its_own_reporter_knew(
    recording: tuple[Run, Progress],
) -> None:
    run, known = recording
    follower = Follower(run)
    follower.catch_up()
    found = follower.progress
    assert (found.step, found.rewards, found.readings) == (known.step, known.rewards, known.readings)
    assert found.ledger == known.ledger
    assert found.tally.counts() == known.tally.counts()
    assert found.tally.episodes == known.tally.episodes == run.count()
    assert found.metrics.keys() == known.metrics.keys()
    assert found.interesting is not None
    assert found.interesting.episode.calls


def test_on_a_terminal_it_draws_until_ctrl_c_and_the_run_goes_on(folder: RunFolder) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    with EpisodeStore(folder.episodes) as store:
        with subprocess.Popen(watch(folder), stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            output, had_step, is_stopped = "", False, False
            while select.select([ours], [], [], PATIENCE_S)[0]:
                try:
                    output += os.read(ours, 65536).decode(errors="replace")
                except OSError:  # The other end is closed.
                    break
                if not had_step and "1/2" in output:
                    had_step = True
                    go_on(folder, store)
                elif not is_stopped and "2/2" in output and "failed" in output.rpartition("2/2")[2]:
                    is_stopped = True
                    process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
        os.close(ours)
        assert Run(folder.path).state == "running"
    assert output.count(HIDE_CURSOR) == output.count(SHOW_CURSOR) == 1
    assert "no longer watching; copied goes on" in output.rpartition(SHOW_CURSOR)[2]
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert re.search(r"health +after step \d: truncation: completions were cut", drawn)
    assert re.search(r"episode +failed: train-90-0-0: agent: no\\u001b\[31m file", drawn)
    assert "note: something of note" in drawn


def test_off_a_terminal_it_writes_lines_and_ends_as_the_run_ends(folder: RunFolder) -> None:
    store = EpisodeStore(folder.episodes)
    with subprocess.Popen(watch(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3)]
        go_on(folder, store)
        while "step 2/2" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        folder.write_summary(Summary("interrupted", steps=2, signal="SIGTERM"))
        store.close()
        out, rest = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75
    assert lines[0].startswith("training calculator on tiny")
    assert lines[1].startswith("step 1/2: reward ")
    assert lines[2].startswith("after step 1: held-out reward ")
    assert "warning: health: truncation: completions were cut\n" in lines
    assert re.search(r"step 2/2: reward 0\.625, 1 failed", lines[-1])
    assert "\x1b" not in "".join([*lines, rest])
    assert out.startswith("interrupted after 2 steps")


@pytest.mark.parametrize(
    ("summary", "code"),
    [
        (Summary("completed"), 0),
        (Summary("interrupted", signal="SIGTERM"), 75),
        (Summary("interrupted", signal="SIGINT"), 130),
        (Summary("failed: no\x1b[2J"), 1),
    ],
)
def test_the_exit_code_is_that_of_the_run(
    folder: RunFolder, summary: Summary, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_summary(summary)
    assert root.main(["watch", str(folder.path)], standalone_mode=False, obj=App()) == code
    out = capsys.readouterr().out
    assert out.startswith(summary.outcome.replace("\x1b", "\\u001b"))


def test_a_run_that_was_killed_is_an_error(folder: RunFolder) -> None:
    os.utime(folder.config, (1_000_000_000,) * 2)
    with pytest.raises(RunError, match=r"copied was killed.*agentrl train --resume"):
        root.main(["watch", str(folder.path)], standalone_mode=False, obj=App())
