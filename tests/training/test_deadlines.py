"""What hangs does not hang the run: at its deadline the run ends, and names the stage that it waited for."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrl import Trainer, load_config
from agentrl.errors import BackendError, RunError
from agentrl.inference.engine.backend import TorchBackend
from agentrl.learner.learner import Learner
from agentrl.loops import finish_in_thread
from agentrl.reporting.plain import PlainReporter
from agentrl.runs import store
from agentrl.training import checkpointer

SMALL = ("training.steps=2", "tasks.eval=null", "rollout.tasks_per_step=1", "rollout.group_size=2", "run.name=run")
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


class Hang:
    """Something that does not return before the test is over."""

    def __init__(self) -> None:
        self._end = threading.Event()

    def in_thread(self, *_: object, **__: object) -> None:
        assert self._end.wait(60)

    async def uncancelled(self, *_: object) -> None:
        """Waits for a thread even when it is cancelled, as a backend may that copies weights in one."""
        await finish_in_thread(self.in_thread)

    def end(self) -> None:
        self._end.set()


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.end()


def train(folder: Path, *settings: str) -> None:
    config = load_config(None, f"run.dir={folder}", *SMALL, *settings, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train("math")


@pytest.mark.parametrize(
    ("method", "stage", "seconds"),
    [("start", "the inference engine to start", 1), ("update_weights", "the inference engine to take new weights", 5)],
)
def test_an_engine_that_hangs_ends_the_run_even_where_nothing_can_cancel_it(
    tmp_path, monkeypatch, hang, method, stage, seconds
):
    monkeypatch.setattr(TorchBackend, method, lambda self, *given: hang.uncancelled(*given))
    with pytest.raises(BackendError, match=f"^waited {seconds} s for {stage} \\(raise inference.timeout\\)$"):
        train(tmp_path, f"inference.timeout={seconds}")
    assert f"for {stage}" in json.loads((tmp_path / "run" / "summary.json").read_text())["outcome"]


@pytest.mark.parametrize(
    ("where", "name", "stage", "seconds"),
    [
        (Learner, "step", "the learner to take step 1", 1),
        (checkpointer, "save_checkpoint", "checkpoint 2 to be written", 5),
    ],
)
def test_a_learner_or_a_disk_that_hangs_ends_the_run(tmp_path, monkeypatch, hang, where, name, stage, seconds):
    monkeypatch.setattr(where, name, hang.in_thread)
    with pytest.raises(RunError, match=f"^waited {seconds} s for {stage} \\(raise training.timeout\\)$"):
        train(tmp_path, f"training.timeout={seconds}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"for {stage}" in summary["outcome"]
    assert summary["checkpoint"] is None


def test_a_store_that_hangs_ends_the_run(tmp_path, monkeypatch, hang):
    monkeypatch.setattr(store, "PATIENCE_S", 0.5)
    monkeypatch.setattr(store.EpisodeStore, "_write", hang.in_thread)
    with pytest.raises(RunError, match=r"^waited 0\.5 s for the episode store .*episodes\.sqlite to be written"):
        train(tmp_path)
    assert "episode store" in json.loads((tmp_path / "run" / "summary.json").read_text())["outcome"]


def test_every_deadline_is_documented_with_its_key_and_its_message():
    (table,) = re.findall(r"## Deadlines\n.*?\n\n(\|.*?)\n\n", DOCUMENTED, re.DOTALL)
    for stage in (
        *("the inference engine to start", "the inference engine to take new weights", "to score recorded tokens"),
        *("to prove that it has the new weights", "the inference backend did not stop within"),
        *("the learner to take step", "checkpoint … to be written", "the episode store", "was not ready within"),
        *("the episode did not end within", "the reward did not score the answer"),
        *("the rollout of training episodes", "the evaluation", "tracker", "plugin"),
    ):
        assert stage in table
    for key in ("inference.timeout", "training.timeout", "rollout.episode_timeout", "run.hook_timeout"):
        assert f"`{key}`" in table
