"""A run folder is made once, is never written over, and holds nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from agentrl.config import load_config
from agentrl.config.models import Config
from agentrl.errors import ConfigError, RunError, RunFolderError
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder, default_name, read_summary
from agentrl.runs.reader import Run

NOW = datetime(2026, 11, 24, 9, 15, 0)


def config_in(folder: Path, name: str | None = None, **sections: object) -> Config:
    return Config.model_validate({"run": {"dir": str(folder), "name": name}, **sections})


def create(folder: Path, name: str | None = None, **sections: object) -> RunFolder:
    return RunFolder.create(config_in(folder, name, **sections), now=lambda: NOW)


def newest(folder: RunFolder) -> Path | None:
    saved = Run(folder.path).newest_checkpoint()
    return None if saved is None else saved.path


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing written becomes durable."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def test_the_name_is_the_agent_and_the_time_unless_it_is_given(tmp_path: Path) -> None:
    assert create(tmp_path).name == "math-20261124-091500"
    assert create(tmp_path, "quickstart").path == tmp_path / "quickstart"


@pytest.mark.parametrize(
    ("agent", "short"),
    [
        ("dist/math", "math"),
        ("pkg.mod:MyAgent", "MyAgent"),
        ("../a b.py:run", "run"),
        ("ø??", "agent"),
        ("...", "agent"),
    ],
)
def test_the_default_name_is_short_and_safe(agent: str, short: str) -> None:
    assert default_name(agent, NOW) == f"{short}-20261124-091500"


@given(st.text())
def test_any_agent_gives_the_name_of_one_folder(agent: str) -> None:
    name = default_name(agent, NOW)
    assert name == Path(name).name
    assert not name.startswith((".", "-"))
    assert len(name) < 100


def test_the_config_in_the_folder_is_the_config_of_the_run(tmp_path: Path) -> None:
    config = config_in(tmp_path, "named", agent={"name": "math", "kwargs": {"max_turns": 4}}, trackers=["tensorboard"])
    folder = RunFolder.create(config)
    assert Config.model_validate(YAML(typ="safe").load(folder.config)) == config


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    first = create(tmp_path, "mine")
    before = sorted(first.path.iterdir())
    with pytest.raises(
        ConfigError, match=r"the run folder .*mine exists already \(resume it with .*, or set run\.name to"
    ):
        create(tmp_path, "mine", seed=1)
    assert sorted(first.path.iterdir()) == before
    assert YAML(typ="safe").load(first.config)["seed"] == 0


def test_two_runs_of_one_second_get_a_folder_each(tmp_path: Path) -> None:
    assert [create(tmp_path).name for _ in range(3)] == [
        "math-20261124-091500",
        "math-20261124-091500-2",
        "math-20261124-091500-3",
    ]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/absolute", "nul\0"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name=.* is not the name of a folder \(set run\.dir"):
        create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_folder_is_an_error_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            RunFolderError, match=r"cannot make a run folder in .*file.*: .*\(set run\.dir to"
        ) as caught:
            create(place)
        assert caught.value.exit_code == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_an_error_of_the_environment(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        create(tmp_path)


def test_a_full_disk_at_the_start_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch)
    with pytest.raises(RunFolderError, match=r"No space left on device \(free some space there"):
        create(tmp_path, "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = create(tmp_path)
    assert newest(folder) is None
    with folder.new_checkpoint(20) as place:
        (place / "config.json").write_text("{}")
        assert newest(folder) is None
    assert newest(folder) == folder.checkpoint(20) == folder.path / "checkpoints" / "step-000020"
    assert (folder.checkpoint(20) / "config.json").read_text() == "{}"


def test_the_latest_checkpoint_is_the_one_after_the_most_steps(tmp_path: Path) -> None:
    folder = create(tmp_path)
    for step in (999_999, 1_000_000, 20):
        with folder.new_checkpoint(step):
            pass
    assert newest(folder) == folder.checkpoint(1_000_000)


def test_a_checkpoint_that_fails_leaves_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    folder = create(tmp_path)
    with folder.new_checkpoint(20):
        pass

    def fail(place: Path) -> None:
        (place / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), folder.new_checkpoint(40) as place:
        fail(place)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000020"]


def save_and_die(folder: RunFolder, step: int, after: int) -> int:
    """Save a checkpoint in a child process that ends at its operation number ``after`` on files; returns its status."""
    child = os.fork()
    if child == 0:
        left = iter(range(after))
        touched = {"open", "os.mkdir", "os.rename", "os.listdir", "os.scandir", "shutil.rmtree"}
        sys.addaudithook(lambda event, _: os._exit(9) if event in touched and next(left, None) is None else None)
        with folder.new_checkpoint(step) as place:
            (place / "config.json").write_text(f"{step}")
            (place / "nested").mkdir()
            (place / "nested" / "model.safetensors").write_text(f"{step}" * 1000)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies(counts: bool, left: Iterator[int]) -> None:
    """End the process at an operation that counts, once no more are left."""
    if counts and next(left, None) is None:
        os._exit(9)


def test_a_process_that_is_killed_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    folder = create(tmp_path)
    assert save_and_die(folder, 10, after=1000) == 0
    seen = set()
    for after in range(1000):
        status = save_and_die(folder, 20, after)
        saved = Run(folder.path).newest_checkpoint()
        assert saved is not None
        seen.add(saved.step)
        assert (saved.path / "config.json").read_text() == f"{saved.step}"
        assert (saved.path / "nested" / "model.safetensors").read_text() == f"{saved.step}" * 1000
        if saved.step == 20:
            shutil.rmtree(saved.path)
        if status == 0:
            break
    assert status == 0
    assert after > 8
    assert seen == {10, 20}
    with folder.new_checkpoint(30):
        pass
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000010", "step-000030"]


def test_a_checkpoint_whose_removal_is_killed_is_none_any_more(tmp_path: Path) -> None:
    folder = create(tmp_path)
    for after in range(100):
        for step in (10, 20):
            if not folder.checkpoint(step).exists():
                assert save_and_die(folder, step, after=1000) == 0
        child = os.fork()
        if child == 0:
            left = iter(range(after))
            touched = {"os.remove", "os.rmdir", "os.scandir", "os.rename", "shutil.rmtree"}
            sys.addaudithook(lambda event, _, left=left, touched=touched: dies(event in touched, left))
            folder.prune([folder.checkpoint(10)])
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for saved in Run(folder.path).checkpoints():
            assert (saved.path / "nested" / "model.safetensors").read_text() == f"{saved.step}" * 1000
        if status == 0:
            break
    assert (status, after > 3) == (0, True)
    with folder.new_checkpoint(30):
        pass
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000020", "step-000030"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_under_a_checkpoint_is_named(tmp_path: Path, error: Exception) -> None:
    folder = create(tmp_path)
    failing = pytest.raises(RunError, match=r"cannot write .*step-000040: .*\(free some space")
    with failing as caught, folder.new_checkpoint(40):
        raise error
    assert caught.value.exit_code == 1
    assert list(folder.checkpoints.iterdir()) == []


def test_the_summary_has_exactly_the_documented_keys(tmp_path: Path) -> None:
    folder = create(tmp_path)
    summary = Summary("completed", 60, 4000, 80_000, 55.5, 0.06, 0.95, 0.1, 0.99, "runs/x/checkpoints/step-000060")
    folder.write_summary(summary)
    assert set(json.loads(folder.summary.read_text())) == {
        "reward_before",
        "reward_after",
        "reward_before_greedy",
        "reward_after_greedy",
        "steps",
        "episodes",
        "tokens",
        "seconds",
        "checkpoint",
        "outcome",
        "failed",
        "rejected",
        "mistaken",
        "limited",
        "cost",
        "ledger",
        "restarts",
        "retried",
        "truncated",
        "undelivered",
        "overridden",
        "unmet",
        "control_tokens",
        "normalised",
        "signal",
        "reasons",
        "loss_before",
        "loss_after",
        "conversations",
        "over_long",
    }
    assert read_summary(folder.summary) == summary


def test_a_summary_that_cannot_be_written_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = create(tmp_path)
    fill_the_disk(monkeypatch)
    with pytest.raises(RunError, match=r"cannot write .*summary\.json: No space left"):
        folder.write_summary(Summary("completed"))
    assert not [path for path in folder.path.iterdir() if "summary" in path.name]


def test_the_config_reads_back_equal(tmp_path: Path) -> None:
    kwargs = {"tag": "1e4", "greeting": "grüezi 🎉", "flag": "no", "number": "012", "rate": 1e-5}
    config = config_in(tmp_path, "1e4", agent={"name": "math", "kwargs": kwargs})
    assert load_config(RunFolder.create(config).config, environ={}) == config
