"""Runs whose model is in processes of its own: they learn, are killed, and go on by themselves."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from tests.training.killing import Process, Runs, Trained, assert_the_same
from tests.training.test_sft import conversations
from tests.warm import WarmInterpreter

from agentrl import Trainer, load_config, open_run
from agentrl.reporting.plain import PlainReporter

TWO = ("training.processes=2", "evaluation.every=0")


@pytest.fixture(scope="module")
def runs(warm: WarmInterpreter, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ranked")
    return Runs(warm, folder, hosts=folder / "hosts")


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Trained:
    """A run of two ranks that nothing stops."""
    runs.whole("whole", *TWO)
    return runs.trained("whole")


def started(hosts: Path, process: Process | None = None) -> list[psutil.Process]:
    """The two processes that hold the model, in the order of their ranks, once they are there."""
    supervisors: list[psutil.Process] = []
    while (process is None or process.poll() is None) and not (
        len(supervisors) == 2 and all(each.children() for each in supervisors)
    ):
        time.sleep(0.02)
        supervisors = [psutil.Process(int(line)) for line in hosts.read_text().splitlines()]
    return [each.children()[0] for each in supervisors]


def steps_of(runs: Runs, name: str, process: Process, steps: int) -> None:
    """Wait until the run has made so many steps."""
    run = open_run(runs.folder / "runs" / name)
    while process.poll() is None and len(run.steps()) < steps:
        time.sleep(0.005)


@pytest.mark.long
def test_a_rank_that_is_killed_in_mid_step_changes_nothing_of_what_is_learned(runs: Runs, whole: Trained) -> None:
    process = runs.new("killed", *TWO)
    found = started(runs.hosts, process)
    steps_of(runs, "killed", process, 3)
    found[1].send_signal(signal.SIGSTOP)  # It is in a step, or will be, when it ends.
    time.sleep(0.3)
    found[1].kill()
    assert process.wait(120) == 0, (runs.folder / "told").read_text()
    told = (runs.folder / "told").read_text()
    assert "learner rank 1 on this machine" in told
    assert "was ended by SIGKILL" in told
    assert "the run goes on by itself (restart 1 of training.restarts=3)" in told
    run = open_run(runs.folder / "runs" / "killed")
    assert run.summary is not None
    assert run.summary.restarts == 1
    assert_the_same(runs.trained("killed"), whole)
    assert not any(each.is_running() for each in found)
    assert (run.path / "logs" / "hosts" / "learner-rank-1.log").exists()


@pytest.mark.long
def test_a_rank_that_hangs_past_its_deadline_is_lost_and_changes_nothing(runs: Runs, whole: Trained) -> None:
    process = runs.new("hung", *TWO, "training.timeout=40")
    found = started(runs.hosts, process)
    steps_of(runs, "hung", process, 3)
    found[1].send_signal(signal.SIGSTOP)
    assert process.wait(240) == 0, (runs.folder / "told").read_text()
    told = (runs.folder / "told").read_text()
    assert "waited 38 s for learner rank 1 on this machine" in told
    assert "the run goes on by itself (restart 1 of training.restarts=3)" in told
    assert_the_same(runs.trained("hung"), whole)
    assert not any(each.is_running() for each in found)


@pytest.mark.long
def test_a_loss_that_restarting_cannot_mend_ends_the_run(runs: Runs) -> None:
    process = runs.new("lost", *TWO, "training.restarts=0")
    found = started(runs.hosts, process)
    steps_of(runs, "lost", process, 1)
    began = time.monotonic()
    found[0].kill()
    assert process.wait(60) == 1
    assert time.monotonic() - began < 30
    told = (runs.folder / "told").read_text()
    assert "error: learner rank 0 on this machine" in told
    assert "resume it with: agentrl train --resume" in told
    run = open_run(runs.folder / "runs" / "lost")
    assert run.summary is not None
    assert run.summary.restarts == 0
    assert run.state == "failed"
    assert not any(each.is_running() for each in found)


@pytest.mark.long
def test_sigterm_saves_through_the_ranks_and_the_run_is_resumed_with_another_number_of_them(
    runs: Runs, whole: Trained
) -> None:
    process = runs.new("preempted", *TWO)
    found = started(runs.hosts, process)
    steps_of(runs, "preempted", process, 2)
    for each in found:
        each.send_signal(signal.SIGTERM)  # As batch systems do, which tell every process.
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, (runs.folder / "told").read_text()
    assert not any(each.is_running() for each in found)
    run = open_run(runs.folder / "runs" / "preempted")
    newest = run.newest_checkpoint()
    assert newest is not None
    assert run.summary is not None
    assert newest.step == run.summary.steps
    assert runs.train("--resume", "preempted", "training.processes=1") == 0, runs.told
    assert "with training.processes=1 (was 2)" in runs.told
    assert runs.trained("preempted").keys == whole.keys


@pytest.mark.long
def test_no_rank_outlives_the_run_that_is_killed(runs: Runs) -> None:
    process = runs.new("gone", *TWO)
    found = started(runs.hosts, process)
    steps_of(runs, "gone", process, 1)
    process.kill()
    process.wait(30)
    _, alive = psutil.wait_procs(found, timeout=10)
    assert alive == []


def test_a_run_in_two_processes_learns_as_one_in_this(runs: Runs, whole: Trained) -> None:
    """The whole of it, up to a held-out reward, is part of ``make acceptance``."""
    runs.whole("alone", "evaluation.every=0")
    alone = runs.trained("alone")
    assert alone.keys == whole.keys
    assert losses(runs, "alone")[0] == pytest.approx(losses(runs, "whole")[0], abs=1e-6)
    rewards = [[metrics.get("reward/mean") for _, metrics in each.metrics] for each in (alone, whole)]
    assert rewards[0][:3] == rewards[1][:3]


def losses(runs: Runs, name: str) -> list[float]:
    return [line.metrics["policy/loss"] or 0.0 for line in open_run(runs.folder / "runs" / name).steps()]


def test_stored_episodes_are_trained_by_two_processes_as_by_one(runs: Runs, whole: Trained, warm_hosts: Path) -> None:
    """In this process, from a script."""
    source = runs.folder / "runs" / "whole"
    for processes in (1, 2):
        settings = (f"run.dir={runs.folder / 'runs'}", f"run.name=again-{processes}", "training.steps=3")
        config = load_config(source / "config.yaml", *settings, f"training.processes={processes}", environ={})
        with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
            assert trainer.replay(source).outcome == "completed"
    assert losses(runs, "again-2") == pytest.approx(losses(runs, "again-1"), abs=1e-5)
    assert losses(runs, "again-2") == losses(runs, "whole")[:3]


def test_conversations_are_imitated_by_two_processes_as_by_one_and_a_loss_is_outlived(
    runs: Runs, warm_hosts: Path
) -> None:
    chats = conversations(runs.folder / "chats.jsonl", 60)
    small = (f"run.dir={runs.folder / 'runs'}", "training.steps=4", "training.checkpoint_every=1", "model=tiny")
    for processes in (1, 2):
        reporter = _KillsRank(warm_hosts, step=3) if processes == 2 else PlainReporter(io.StringIO())
        config = load_config(None, *small, f"run.name=sft-{processes}", f"training.processes={processes}", environ={})
        with Trainer(config, reporter=reporter) as trainer:
            summary = trainer.sft(chats)
        assert (summary.outcome, summary.steps, summary.restarts) == ("completed", 4, processes - 1)
    assert losses(runs, "sft-2") == pytest.approx(losses(runs, "sft-1"), abs=1e-5)


class _KillsRank(PlainReporter):
    """Kills a rank once, when so many steps are done."""

    def __init__(self, hosts: Path, step: int) -> None:
        super().__init__(io.StringIO())
        self._hosts = hosts
        self._step = step

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        super().step_finished(step, metrics)
        if step == self._step:
            self._step = -1
            started(self._hosts)[0].kill()


def test_it_is_told_where_the_processes_are_going_to_be(runs: Runs) -> None:
    assert runs.train("math", *TWO, "--dry-run") == 0
    assert "2 processes of this machine train the model, with" in runs.told


def test_ctrl_c_ends_the_wait_for_room(runs: Runs) -> None:
    full = f"scheduler={Path(__file__).with_name('bare.py')}:Full"
    process = runs.new("full", *TWO, full, "training.timeout=3600")
    while process.poll() is None and not (runs.folder / "waiting").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (runs.folder / "told").read_text()
    told = (runs.folder / "told").read_text()
    assert "interrupted" in told
    assert "while the run was being interrupted" not in told
    assert open_run(runs.folder / "runs" / "full").state == "interrupted"


def test_a_scheduler_that_starts_none_is_refused(runs: Runs) -> None:
    assert runs.train("math", *TWO, f"scheduler={Path(__file__).with_name('bare.py')}:Bare", "--dry-run") == 2
    assert "training.processes=2 cannot be with scheduler.type=" in runs.told
    assert "bare.py:Bare, which starts none (set scheduler.type=local, or training.processes=1)" in runs.told
