"""What is saved, and that nothing is which nobody allows."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agentrl.config.training import TrainingSection
from agentrl.reporting.plain import PlainReporter
from agentrl.runs.folder import RunFolder
from agentrl.training.checkpointer import Checkpointer
from agentrl.training.checkpoints import Conversing, read_checkpoint
from agentrl.training.stopwatch import Stopwatch


@dataclass
class Learner:
    """Writes its version."""

    version: int = 3
    saved: list[int] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        (folder / "model").write_text(str(self.version))

    def save_state(self, folder: Path) -> None:
        self.saved.append(self.version)


def checkpointer_of(folder: Path, learner: Learner) -> Checkpointer:
    (folder / "checkpoints").mkdir(exist_ok=True)
    reporter = PlainReporter(io.StringIO())
    recorder: Any = SimpleNamespace(
        folder=RunFolder(folder), reporter=reporter, sync=lambda: None, checkpoint=lambda path: None
    )
    section = TrainingSection()
    whole: Any = learner
    return Checkpointer(whole, section, recorder, Conversing(), lambda: 1.5, Stopwatch())


def test_a_version_is_written_once_with_where_the_run_goes_on(tmp_path: Path) -> None:
    learner = Learner()
    checkpointer = checkpointer_of(tmp_path, learner)
    checkpointer.cursor = 24
    path = checkpointer.write()
    assert path is not None
    assert checkpointer.write() == path == checkpointer.newest
    assert learner.saved == [3]
    assert (read_checkpoint(path).cursor, read_checkpoint(path).seconds) == (24, 1.5)


def test_what_is_not_allowed_is_not_written_and_is_asked_when_no_weights_change(tmp_path: Path) -> None:
    learner = Learner()
    checkpointer = checkpointer_of(tmp_path, learner)
    asked: list[bool] = []

    def allowed() -> bool:
        asked.append(checkpointer._lock.locked())
        return False

    assert checkpointer.write(allowed) is None
    assert (asked, learner.saved, checkpointer.newest) == ([True], [], None)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert checkpointer.write(lambda: True) is not None
