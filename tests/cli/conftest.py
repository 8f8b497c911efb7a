"""A recorded run that the commands about runs read: trained once, and left alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from agentrl import Trainer, load_config
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.reader import Run, open_run

SMALL = (
    *("training.steps=2", "rollout.tasks_per_step=2", "rollout.group_size=4", "rollout.max_tokens=24"),
    *("evaluation.tasks=4", "evaluation.every=1", "training.checkpoint_every=2"),
)


def trained(folder: Path, name: str, *settings: str) -> Run:
    """A real run of the calculator agent, of two steps of eight episodes."""
    config = load_config(None, *SMALL, f"run.dir={folder}", f"run.name={name}", *settings, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        assert trainer.train("calculator").outcome == "completed"
    return open_run(folder / name)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of two tasks with four episodes each, and three evaluations of four tasks."""
    return trained(tmp_path_factory.mktemp("recorded") / "runs", "first")
