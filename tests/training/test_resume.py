"""A run that was stopped goes on as if it had never been: nothing is rolled out twice, lost, or learned otherwise."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.training.killing import SMALL, Runs, Trained, assert_bounded, assert_the_same, told
from tests.warm import WarmInterpreter

from agentrl import Trainer, load_config, open_run
from agentrl.config import resolve_config
from agentrl.errors import ConfigError, RunError
from agentrl.learner import learner
from agentrl.runs.folder import FolderLock
from agentrl.training.resume import check_config, find_resume_point


@pytest.fixture(scope="module")
def runs(warm: WarmInterpreter, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(warm, tmp_path_factory.mktemp("resumed"))


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[float, Trained]:
    """A run that nothing stops: how long it takes as a process, and what it comes to."""
    seconds = runs.whole("whole")
    return seconds, runs.trained("whole")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_run_that_is_killed_at_a_random_moment_ends_as_one_that_is_not(
    runs: Runs, whole: tuple[float, Trained], seed: int
) -> None:
    seconds, expected = whole
    runs.killed_and_resumed(f"killed-{seed}", seed, seconds)
    assert_the_same(runs.trained(f"killed-{seed}"), expected)


def test_steps_beside_the_rollout_are_repeated_as_they_were_and_the_bound_holds_across_a_kill(
    runs: Runs, whole: tuple[float, Trained]
) -> None:
    slow = (
        "rollout.max_staleness=2",
        "training.steps=8",
        "training.checkpoint_every=3",
        "training.learning_rate=0.0003",
    )
    process = runs.new("beside", *slow)
    run = open_run(runs.folder / "runs" / "beside")
    while process.poll() is None and len(run.steps()) < 5:
        time.sleep(0.005)
    assert runs.kill(process, 0.0)
    logged = [(line.step, told(line.metrics)) for line in run.metrics()]
    (before,) = (each for each in (run.newest_checkpoint(),) if each is not None)
    weights = (before.path / "model.safetensors").read_bytes()
    stored = {row.key for row in run.episodes()}
    assert runs.here("--resume", "beside") == 0, runs.told
    lines = {(line.step, line.is_evaluation): told(line.metrics) for line in run.metrics()}
    assert len(lines) == len(run.metrics())
    for step, metrics in logged:
        assert lines[step, "evaluation/reward" in metrics] == metrics
    assert "tokens/lost_lineage" not in {name for metrics in lines.values() for name in metrics}
    assert (before.path / "model.safetensors").read_bytes() == weights
    assert stored <= {row.key for row in run.episodes()}
    assert [line.step for line in run.steps()] == list(range(1, 9))
    assert_bounded(runs.folder, "beside", 2)
    assert max(metrics.get("staleness/max") or 0 for metrics in lines.values()) == 2


def test_sigterm_saves_and_the_run_goes_on_from_there(runs: Runs, whole: tuple[float, Trained]) -> None:
    process = runs.new("preempted")
    run = open_run(runs.folder / "runs" / "preempted")
    while process.poll() is None and len(run.steps()) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert run.summary is not None
    assert (run.state, run.summary.signal) == ("interrupted", "SIGTERM")
    newest = run.newest_checkpoint()
    assert newest is not None
    assert newest.step == run.summary.steps == max(line.step for line in run.steps())
    before = run.summary
    assert runs.here("--resume", "preempted") == 0
    assert f"resumed from step {newest.step}" in runs.told
    assert run.summary.seconds > before.seconds
    assert run.summary.episodes == sum(whole[1].keys.values())
    assert_the_same(runs.trained("preempted"), whole[1])


def test_a_worker_that_is_killed_changes_nothing_of_what_is_learned(runs: Runs, whole: tuple[float, Trained]) -> None:
    process = runs.new("workers", "rollout.mode=subproc", "rollout.max_workers=2")
    run = open_run(runs.folder / "runs" / "workers")
    while process.poll() is None and not run.steps():
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "agentrl.worker" in " ".join(child.cmdline())]
    workers[0].kill()
    assert process.wait(120) == 0
    trained, expected = runs.trained("workers"), whole[1]
    assert (trained.keys, trained.weights) == (expected.keys, expected.weights)
    losses = [[metrics.get("policy/loss") for _, metrics in each.metrics] for each in (trained, expected)]
    assert losses[0] == losses[1]


DIES_WHILE_IT_SAVES = """
import os, signal
from agentrl.training import checkpointer
def save(folder, *arguments, save=checkpointer.save_checkpoint, **options):
    save(folder, *arguments, **options)
    (folder / "learner.pt").unlink()
    if options["cursor"] >= 8:
        os.kill(os.getpid(), signal.SIGKILL)
checkpointer.save_checkpoint = save
"""


def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(runs: Runs, whole: tuple[float, Trained]) -> None:
    """The one before is damaged besides, as by a disk: then the run goes on from its model."""
    assert runs.new("saving", before=DIES_WHILE_IT_SAVES).wait(60) == -9
    left = {path.name for path in (runs.folder / "runs/saving/checkpoints").iterdir()}
    assert left == {"step-000002", ".step-000004.part"}
    assert runs.here("--resume", "saving") == 0, runs.told
    assert "resumed from step 0 (step-000002 is damaged), and 4 steps after it from stored episodes" in runs.told
    assert_the_same(runs.trained("saving"), whole[1])
    assert not list((runs.folder / "runs/saving/checkpoints").glob(".*"))


def small_disk(patch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any, connect: Any = sqlite3.connect, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        if "uri" not in options:
            connection.execute("PRAGMA max_page_count = 26")
        return connection

    patch.setattr(sqlite3, "connect", connect)


def no_room_for_checkpoints(patch: pytest.MonkeyPatch) -> None:
    def write_state(state: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(learner, "write_state", write_state)


@pytest.mark.parametrize(
    ("fill", "what"),
    [(small_disk, r"runs/full-0/episodes.sqlite"), (no_room_for_checkpoints, r"runs/full-1/checkpoints/step-000002")],
    ids=["episodes", "checkpoint"],
)
def test_a_disk_that_fills_ends_the_run_with_what_could_not_be_written_and_it_goes_on(
    runs: Runs, whole: tuple[float, Trained], fill: Callable[[pytest.MonkeyPatch], None], what: str
) -> None:
    name = what.split("/")[1]
    with pytest.MonkeyPatch.context() as patch:
        fill(patch)
        assert runs.here("math", *SMALL, f"run.name={name}") == 1
    assert f"error: cannot write {what}" in runs.told
    assert "free some space" in runs.told
    assert open_run(runs.folder / "runs" / name).state == "failed"
    assert runs.here("--resume", name) == 0, runs.told
    assert_the_same(runs.trained(name), whole[1])


def test_a_completed_run_goes_on_when_more_steps_are_named(runs: Runs, whole: tuple[float, Trained]) -> None:
    assert runs.here("math", *SMALL, "run.name=longer", "training.steps=4") == 0, runs.told
    assert runs.here("--resume", "longer") == 2
    assert "has completed its 4 steps (name more of them to go on: training.steps=8)" in runs.told
    assert runs.here("--resume", "longer", "seed=4") == 2
    assert "a run cannot go on with another seed: seed=4 (was 0)" in runs.told
    assert runs.here("--resume", "longer", "training.steps=6") == 0, runs.told
    assert "with training.steps=6 (was 4)" in runs.told
    assert open_run(runs.folder / "runs/longer").config.training.steps == 6
    assert_the_same(runs.trained("longer"), whole[1])


@pytest.fixture
def copied(runs: Runs, whole: tuple[float, Trained], tmp_path: Path) -> Path:
    """A run that was killed long after its last checkpoint, elsewhere, with a run of another kind beside it."""
    place = tmp_path / "runs"
    shutil.copytree(runs.folder / "runs" / "whole", place / "mine")
    shutil.rmtree(place / "mine" / "checkpoints" / "step-000006")
    (place / "mine" / "summary.json").unlink()
    return place / "mine"


def test_a_run_that_goes_on_is_refused(copied: Path) -> None:
    lock = FolderLock(copied)
    with Trainer.resume(copied) as trainer, pytest.raises(RunError, match=r"mine is going on: a process writes to it"):
        trainer.train()
    lock.release()


def test_a_config_that_differs_is_refused_by_its_keys_before_anything_is_touched(copied: Path) -> None:
    before = (copied / "metrics.jsonl").read_bytes()
    file = copied.parent / "other.yaml"
    file.write_text((copied / "config.yaml").read_text().replace("max_tokens: 12", "max_tokens: 13"))
    with (
        Trainer(load_config(file, environ={}), run=copied) as trainer,
        pytest.raises(ConfigError, match=r"another config: rollout\.max_tokens=13 \(was 12\), from file .*:\d+ \(name"),
    ):
        trainer.train()
    assert (copied / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "episodes.sqlite",
            None,
            r"has trained, and its episode store .*episodes\.sqlite is missing \(restore it .* model=",
        ),
        ("episodes.sqlite", b"", r"its episode store .*episodes\.sqlite is empty"),
        ("episodes.sqlite", b"no database" * 200, r"episodes\.sqlite is not an episode store.* \(restore it"),
        ("summary.json", b"[1]", r"summary\.json is not a run's summary: it is no JSON object .* \(restore it"),
        ("metrics.jsonl", b"\xff[\n", r"metrics\.jsonl, line 1 is not JSON \(restore the file"),
        (
            "metrics.jsonl",
            b'{"step": "1", "time": 0}\n',
            r"line 1 is not a JSON object with a step and a time \(restore",
        ),
    ],
)
def test_a_file_that_is_lost_or_damaged_is_named_before_anything_is_touched(
    copied: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is None:
        (copied / name).unlink()
    else:
        (copied / name).write_bytes(content)
    before = {path: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    with Trainer.resume(copied, "training.steps=8") as trainer, pytest.raises(RunError, match=said):
        trainer.train()
    assert {path: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("training.steps=3", r"is at step 6 and cannot go on to training\.steps=3 \(name more"),
        ("agent.name=calculator", r"a run cannot go on with another agent\.name: agent\.name=calculator \(was math\)"),
        ("reward=math:score", r"a run cannot go on with another reward"),
    ],
)
def test_fewer_steps_another_agent_and_another_reward_are_refused(copied: Path, key: str, said: str) -> None:
    with Trainer.resume(copied) as trainer:
        written = trainer.config
    changed = resolve_config(copied / "config.yaml", key, environ={})
    with pytest.raises(ConfigError, match=said):
        check_config(changed.config, copied, changed.provenance)
    assert check_config(written, copied, {}) == []


def _cut(content: bytes) -> bytes:
    return content[:-100]


def _scramble(content: bytes) -> bytes:
    return random.Random(0).randbytes(len(content))


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("learner.pt", damage) for damage in (_cut, _scramble, _flip)),
        *(("model.safetensors", damage) for damage in (_cut, _scramble)),
        ("checkpoint.json", _scramble),
        ("config.json", _cut),
    ],
)
def test_the_newest_whole_checkpoint_is_taken_and_damaged_ones_are_named(
    copied: Path, file: str, damage: Callable[[bytes], bytes]
) -> None:
    whole = find_resume_point(copied)
    assert (whole.version, whole.damaged) == (4, [])
    path = copied / "checkpoints" / "step-000004" / file
    path.write_bytes(damage(path.read_bytes()))
    point = find_resume_point(copied)
    assert (point.version, [each.path.name for each in point.damaged]) == (2, ["step-000004"])


def test_a_state_that_is_damaged_where_no_sum_tells_is_an_error_with_its_name(copied: Path) -> None:
    path = copied / "checkpoints" / "step-000004" / "learner.pt"
    with zipfile.ZipFile(path, "w") as state:
        state.writestr("archive/data.pkl", b"none")
    with Trainer.resume(copied) as trainer, pytest.raises(RunError, match=r"learner\.pt cannot be read, or is damaged"):
        trainer.train()


def test_a_changed_step_makes_other_weights_and_what_the_lost_ones_sampled_is_counted(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Trainer.resume(copied, "training.learning_rate=0.002") as trainer:
        trainer.train()
    run = open_run(copied)
    assert "step 5, repeated, made other weights than before the run ended" in capsys.readouterr().err
    lost = {line.step: line.metrics.get("tokens/lost_lineage") for line in run.steps()}
    trained = next(line.metrics["tokens/completion"] for line in run.steps() if line.step == 6)
    assert lost == {1: None, 2: None, 3: None, 4: None, 5: None, 6: trained}


def test_a_run_that_is_not_there_is_told_with_what_is_near(copied: Path, runs: Runs) -> None:
    assert runs.here("--resume", "whol") == 2
    assert "there is no run 'whol'" in runs.told
    assert "did you mean 'whole'" in runs.told


def test_checkpoints_are_kept_by_number_and_the_best_by_evaluation_besides(copied: Path) -> None:
    rewards = {2: 0.75, 4: 0.25}
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "evaluation/reward" in line:
            line["evaluation/reward"] = rewards.get(line["step"], 0.5)
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Trainer.resume(copied, "training.keep=1", "training.steps=10") as trainer:
        trainer.train()
    run = open_run(copied)
    best = run.best_checkpoint()
    assert best is not None
    assert {saved.step for saved in run.checkpoints()} == {4, 10, best.step}  # It was resumed from 4.
