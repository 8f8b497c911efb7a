"""The point from which a run is resumed: its folder, its newest whole checkpoint, and what its config has changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrl.config.changes import Change, changes, check_named
from agentrl.config.loader import load_config
from agentrl.config.models import Config
from agentrl.errors import ConfigError, RunError
from agentrl.runs.contract import Checkpoint, Summary
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import RunFolder, is_locked
from agentrl.runs.reader import Run
from agentrl.training.checkpoints import is_whole

__all__ = ["ResumePoint", "check_config", "find_resume_point", "of_run"]

_FIXED = (
    *("seed", "model", "agent.name", "reward", "tasks.train", "training.lora"),
    *("rollout.group_size", "rollout.tasks_per_step", "sft."),
)
"""Keys that say what a group's number and its episodes stand for, so that no run can go on with others."""

_FREE = re.compile(r"reward\.(.+\.)?(budget(\..+)?|cache|concurrency|max_retries|timeout)")
"""Keys of a reward that say what it may cost and take, and not what it gives."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run goes on."""

    folder: RunFolder
    checkpoint: Checkpoint | None
    """The newest whole checkpoint; ``None`` where there is none, so that the run goes on from its model."""
    damaged: Sequence[Checkpoint] = ()
    """Newer ones of which a file is missing or damaged."""
    changed: Sequence[Change] = ()
    """What the config of the run has changed."""
    restarts: int = 0
    """How often the run has gone on by itself."""

    @property
    def version(self) -> int:
        """The policy version of its weights."""
        return 0 if self.checkpoint is None else self.checkpoint.step


def find_resume_point(path: Path) -> ResumePoint:
    """The point from which the run in the folder ``path`` is resumed.

    Raises ``RunError`` where the run is going on, or one of its files is missing or damaged that it cannot go on
    without, and ``ConfigError`` for a folder that is not of a training run.
    """
    if is_locked(path):
        raise RunError(f"the run {path} is going on: a process writes to it", fix="wait until it ends, or stop it")
    folder = RunFolder(path)
    if not folder.checkpoints.is_dir():
        raise ConfigError(f"{path} is not of a training run: it has no folder of checkpoints")
    run = Run(path)
    _check_store(run, folder)
    restarts = 0 if (summary := run.summary) is None else summary.restarts
    damaged: list[Checkpoint] = []
    for saved in reversed(run.checkpoints()):
        if is_whole(saved.path):
            return ResumePoint(folder, saved, damaged, restarts=restarts)
        damaged.append(saved)
    return ResumePoint(folder, None, damaged, restarts=restarts)


def _check_store(run: Run, folder: RunFolder) -> None:
    """Raise ``RunError`` where a run has trained and its episodes are not there, from which alone it can go on."""
    store = folder.episodes
    if store.exists() and store.stat().st_size > 0:
        EpisodeReader(store).memberships()  # Raises for a file that is not a whole store.
    elif run.metrics() or run.checkpoints():
        checkpoint, what = run.newest_checkpoint(), "empty" if store.exists() else "missing"
        raise RunError(
            f"the run {run.path} has trained, and its episode store {store} is {what}",
            fix="restore it from a copy"
            + ("" if checkpoint is None else f", or start another run from its weights with model={checkpoint.path}"),
        )


def of_run(config: Config, path: Path) -> Config:
    """``config`` with the name and the place of the run in the folder ``path``."""
    run = config.run.model_copy(update={"name": path.resolve().name, "dir": path.parent})
    return config.model_copy(update={"run": run})


def check_config(config: Config, path: Path, named: Mapping[str, str]) -> list[Change]:
    """The keys in which ``config`` differs from that of the run in the folder ``path``, which goes on by ``config``.

    ``named`` says where the value of each key was written. Raises ``ConfigError``, with the keys, for changes that the
    command line does not name, or that a run cannot go on with, and for fewer steps than it has begun, or no more than
    it has completed.
    """
    run = Run(path)
    changed = changes(load_config(path / "config.yaml", environ={}), config, path)
    check_named(changed, named)
    if fixed := [each for each in changed if _is_fixed(each.key)]:
        raise ConfigError(
            f"a run cannot go on with another {fixed[0].key}: {'; '.join(map(str, fixed))}",
            fix="leave it, or start another run from a checkpoint of this one with model=CHECKPOINT",
        )
    summary, steps = run.summary, config.training.steps
    if steps < (begun := _begun(run, summary)):
        raise ConfigError(
            f"the run {path} is at step {begun} and cannot go on to training.steps={steps}",
            fix=f"name more steps to go on, such as training.steps={2 * begun}",
        )
    if summary is not None and summary.outcome == "completed" and steps <= summary.steps:
        raise ConfigError(
            f"the run {path} has completed its {summary.steps} steps",
            fix=f"name more of them to go on: training.steps={2 * summary.steps or 1}",
        )
    return changed


def _is_fixed(key: str) -> bool:
    return key.startswith(_FIXED) and _FREE.fullmatch(key) is None


def _begun(run: Run, summary: Summary | None) -> int:
    """The last step that a run has begun, by all that it has left."""
    store = RunFolder(run.path).episodes
    begun = (each.step for each in EpisodeReader(store).memberships()) if store.exists() else ()
    done = 0 if summary is None else summary.steps
    return max(done, *begun, *(line.step for line in run.steps()), *(saved.step for saved in run.checkpoints()), 0)
