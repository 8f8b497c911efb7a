"""The run folder: everything that a run leaves behind, under ``run.dir``.

::

    runs/math-20261124-091500/
        config.yaml             the resolved config, with its paths relative to this folder
        metrics.jsonl           one line a step and an evaluation
        episodes.sqlite         every finished episode
        checkpoints/step-000020/  a Hugging Face model folder, and what resume needs
        logs/run.log            the run's narration, with the time of each line
        summary.json            how it ended
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from agentrl.config.loader import dump_yaml
from agentrl.config.models import Config
from agentrl.errors import AgentRLError, ConfigError, RunFolderError
from agentrl.inference.model_folder import newest_checkpoint
from agentrl.runs.filesystem import (
    cannot_write,
    disk_is_full,
    has_space,
    reserve,
    sync,
    sync_tree,
    write_atomically,
)
from agentrl.runs.summary import Summary

__all__ = ["RunFolder", "default_name", "run_of"]


class RunFolder:
    """Where a run's files are. ``create`` and ``create_evaluation`` are the only ways to a fresh folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.episodes = path / "episodes.sqlite"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.summary = path / "summary.json"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @classmethod
    def create(cls, config: Config, now: Callable[[], datetime] = datetime.now) -> RunFolder:
        """Make the folder of a new run and write its config.

        Raises ``ConfigError`` for a name that cannot be a folder or is taken, and ``RunFolderError``
        where the file system does not take the folder; then nothing is left behind.
        """
        parent, name = _parent(config), config.run.name
        path = _made(parent, lambda: _make(parent, name) if name else _make_unique(parent, _default(config, now)))
        return cls(path)._filled(config, ("checkpoints", "logs"))

    @classmethod
    def create_evaluation(
        cls, config: Config, measured: Path | None, now: Callable[[], datetime] = datetime.now
    ) -> RunFolder:
        """Make the folder of an evaluation of the weights in the folder ``measured``, and write its config.

        It is called after ``run.name`` or the run that saved them, where there is one, and numbered where that name is
        taken. Raises as ``create`` does.
        """
        parent, name = _parent(config), config.run.name
        if name is None:
            run = None if measured is None else run_of(measured)
            name = _default(config, now) if run is None else run.name
        path = _made(parent, lambda: _make_unique(parent, _path(parent, f"{name}-eval").name))
        return cls(path)._filled(config, ("logs",))

    def _filled(self, config: Config, folders: Sequence[str]) -> RunFolder:
        try:
            for name in folders:
                (self.path / name).mkdir()
            write_atomically(self.config, dump_yaml(config, self.path))
            reserve(self.summary)
        except OSError as error:
            self.remove()
            raise _cannot_make(self.path.parent, error) from error
        return self

    def remove(self) -> None:
        """Take it away, where nothing has come of it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @staticmethod
    def check(config: Config) -> None:
        """Raise the ``ConfigError`` that ``create`` would raise; nothing is made."""
        if config.run.name:
            path = _path(Path(os.path.expanduser(config.run.dir)), config.run.name)
            if path.exists():
                raise _taken(path)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after ``step`` optimiser steps is."""
        return self.checkpoints / f"step-{step:06}"

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint after the most steps; half-written ones do not count."""
        return newest_checkpoint(self.path)

    @contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """An empty folder to fill; it becomes ``checkpoint(step)``, whole and durable, when the block ends.

        Where the block raises nothing is left of it. Raises ``RunError`` where it cannot be written.
        """
        path = self.checkpoint(step)
        aside = path.with_name(f".{path.name}.part")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield aside
            sync_tree(aside)
            aside.rename(path)
            sync(self.checkpoints)
        except BaseException as error:
            unwritable = _cause(error, self.checkpoints)
            shutil.rmtree(aside, ignore_errors=True)
            if unwritable is not None:
                raise cannot_write(path, unwritable) from error
            raise

    def write_summary(self, summary: Summary) -> None:
        """Write ``summary.json`` whole or not at all. Raises ``RunError`` where that cannot be done."""
        try:
            write_atomically(self.summary, json.dumps(summary.to_json(), indent=2) + "\n")
        except OSError as error:
            raise cannot_write(self.summary, error) from error


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that saved ``checkpoint``, where it is still in there."""
    run = checkpoint.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else None


def default_name(agent: str, now: datetime) -> str:
    """The agent, without what is before it in its reference, and the time: ``math-20261124-091500``."""
    short = re.split(r"[:/\\]", agent)[-1]
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", short).strip("-.")[:80]
    return f"{safe or 'agent'}-{now:%Y%m%d-%H%M%S}"


def _make(parent: Path, name: str) -> Path:
    path = _path(parent, name)
    try:
        path.mkdir()
    except FileExistsError as error:
        raise _taken(path) from error
    return path


def _path(parent: Path, name: str) -> Path:
    if name in {".", ".."} or name != Path(name).name or "\0" in name:
        raise ConfigError(f"run.name={name!r} is not the name of a folder", fix="set run.dir for where it is made")
    return parent / name


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"the run folder {path} exists already", fix="set run.name to another name")


def _make_unique(parent: Path, name: str) -> Path:
    """A default name is nobody's choice: where two runs start in one second, the second is numbered."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _parent(config: Config) -> Path:
    return Path(os.path.expanduser(config.run.dir))


def _default(config: Config, now: Callable[[], datetime]) -> str:
    return default_name(config.agent.name, now())


def _made(parent: Path, make: Callable[[], Path]) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return make()
    except OSError as error:
        raise _cannot_make(parent, error) from error


def _cause(error: BaseException, folder: Path) -> OSError | None:
    """The system's error behind ``error``, where a write is what failed."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, AgentRLError) or not isinstance(error, Exception):
        return None
    # Libraries raise errors of their own, of which not all say that the disk is full.
    if disk_is_full(error) or not has_space(folder):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def _cannot_make(parent: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot make a run folder in {parent}: {error.strerror or error}",
        fix="free some space there, or set run.dir to another disk"
        if disk_is_full(error)
        else "set run.dir to a folder that you can write to",
    )
