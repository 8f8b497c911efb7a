"""A recorded run that the commands about runs read: trained once, and left alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from agentrl import Trainer, load_config
from agentrl.reporting.plain import PlainReporter, Progress
from agentrl.runs.reader import Run, open_run

SMALL = (
    *("training.steps=2", "rollout.tasks_per_step=2", "rollout.group_size=4", "rollout.max_tokens=24"),
    *("evaluation.tasks=4", "evaluation.every=1", "training.checkpoint_every=2"),
)


def trained(folder: Path, name: str, *settings: str) -> tuple[Run, Progress]:
    """A real run of the calculator agent, of two steps of eight episodes, and what its own reporter knew at the end."""
    config = load_config(None, *SMALL, f"run.dir={folder}", f"run.name={name}", *settings, environ={})
    reporter = PlainReporter(io.StringIO())
    with Trainer(config, reporter=reporter) as trainer:
        assert trainer.train("calculator").outcome == "completed"
    return open_run(folder / name), reporter._progress


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Progress]:
    """Two steps of two tasks with four episodes each, and three evaluations of four tasks."""
    return trained(tmp_path_factory.mktemp("recorded") / "runs", "first")


@pytest.fixture(scope="session")
def recorded(recording: tuple[Run, Progress]) -> Run:
    """The run of ``recording``."""
    return recording[0]
