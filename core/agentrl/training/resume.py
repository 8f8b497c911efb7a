"""The point from which a run is resumed: its folder, its newest whole checkpoint, and what its config has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrl.config.changes import Change, changes, check_named
from agentrl.config.loader import load_config
from agentrl.config.models import Config
from agentrl.errors import ConfigError, RunError
from agentrl.runs.contract import Checkpoint
from agentrl.runs.folder import RunFolder, is_locked
from agentrl.runs.reader import Run
from agentrl.training.checkpoints import is_whole

__all__ = ["ResumePoint", "check_config", "find_resume_point", "of_run"]

_FIXED = ("seed", "model", "tasks.train", "rollout.group_size", "rollout.tasks_per_step")
"""Keys that say what a group's number and its episodes stand for, so that no run can go on with others."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run goes on."""

    folder: RunFolder
    checkpoint: Checkpoint | None
    """The newest whole checkpoint; ``None`` where there is none, so that the run goes on from its model."""
    damaged: Sequence[Checkpoint] = ()
    """Newer ones of which a file is missing or empty."""
    changed: Sequence[Change] = ()
    """What the config of the run has changed."""

    @property
    def version(self) -> int:
        """The policy version of its weights."""
        return 0 if self.checkpoint is None else self.checkpoint.step


def find_resume_point(path: Path) -> ResumePoint:
    """The point from which the run in the folder ``path`` is resumed.

    Raises ``RunError`` where the run is going on, and ``ConfigError`` for a folder that is not of a training run.
    """
    if is_locked(path):
        raise RunError(f"the run {path} is going on: a process writes to it", fix="wait until it ends, or stop it")
    folder = RunFolder(path)
    if not folder.checkpoints.is_dir():
        raise ConfigError(f"{path} is not of a training run: it has no folder of checkpoints")
    damaged: list[Checkpoint] = []
    for saved in reversed(Run(path).checkpoints()):
        if is_whole(saved.path):
            return ResumePoint(folder, saved, damaged)
        damaged.append(saved)
    return ResumePoint(folder, None, damaged)


def of_run(config: Config, path: Path) -> Config:
    """``config`` with the name and the place of the run in the folder ``path``."""
    run = config.run.model_copy(update={"name": path.resolve().name, "dir": path.parent})
    return config.model_copy(update={"run": run})


def check_config(config: Config, path: Path, named: Mapping[str, str]) -> list[Change]:
    """The keys in which ``config`` differs from that of the run in the folder ``path``, which goes on by ``config``.

    ``named`` says where the value of each key was written. Raises ``ConfigError``, with the keys, for changes that the
    command line does not name, or that a run cannot go on with, and where no step is left to do.
    """
    run = Run(path)
    changed = changes(load_config(path / "config.yaml", environ={}), config, path)
    check_named(changed, named)
    if fixed := [each for each in changed if each.key.startswith(_FIXED)]:
        raise ConfigError(
            f"a run cannot go on with another {fixed[0].key}: {'; '.join(map(str, fixed))}",
            fix="leave it, or start another run from a checkpoint of this one with model=CHECKPOINT",
        )
    summary, steps = run.summary, config.training.steps
    if summary is not None and summary.outcome == "completed" and steps <= summary.steps:
        raise ConfigError(
            f"the run {path} has completed its {summary.steps} steps",
            fix=f"name more of them to go on: training.steps={2 * summary.steps or 1}",
        )
    return changed
