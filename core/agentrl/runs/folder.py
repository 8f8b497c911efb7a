"""The run folder: everything that a run leaves behind, under ``run.dir``.

::

    runs/math-20261124-091500/
        config.yaml             the resolved config, with its paths relative to this folder
        metrics.jsonl           one line a step and an evaluation
        episodes.sqlite         every finished episode
        checkpoints/step-000020/  a Hugging Face model folder, and what resume needs
        logs/run.log            the run's narration, with the time of each line
        summary.json            how it ended
        conversations.json      a digest of what a run of agentrl sft imitates
        run.lock                held, with process id and host, while the run writes here; removed at its end
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import AgentRLError, ConfigError, RunError, RunFolderError, cannot_write, disk_is_full
from agentrl.locks import acquired
from agentrl.runs.contract import RunInfo, Summary

if TYPE_CHECKING:
    from agentrl.config.models import Config

__all__ = [
    "FolderLock",
    "RunFolder",
    "default_name",
    "filesystem_type",
    "is_locked",
    "is_network_filesystem",
    "newest_run",
    "read_summary",
    "run_names",
    "run_of",
    "write_atomically",
]

_NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"}
)
_SPARE_BYTES = 1 << 20
_LOCK = "run.lock"
_PROBE_S = 1.0
"""Seconds for which a writer waits for the lock: a reader that looks whether it is held has it for a moment."""


class RunFolder:
    """The paths of a run's files under ``path``. ``create`` and ``create_evaluation`` make a new folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.episodes = path / "episodes.sqlite"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.summary = path / "summary.json"
        self.conversations = path / "conversations.json"
        self.lock = path / _LOCK

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

        Its name is ``run.name``, or the name of the run that saved the weights, with ``-eval``, and a number where that
        is taken. Raises as ``create`` does.
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
            from agentrl.config.loader import dump_yaml

            write_atomically(self.config, dump_yaml(config, self.path))
            reserve(self.summary)
        except OSError as error:
            self.remove()
            raise _cannot_make(self.path.parent, error) from error
        return self

    def remove(self) -> None:
        """Remove the folder of a run that ended before it had anything to keep."""
        shutil.rmtree(self.path, ignore_errors=True)

    @staticmethod
    def check(config: Config) -> None:
        """Raise the ``ConfigError`` that ``create`` would raise; nothing is made."""
        if config.run.name:
            path = _path(Path(os.path.expanduser(config.run.dir)), config.run.name)
            if path.exists():
                raise _taken(path)

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after ``step`` optimiser steps, which need not exist."""
        return self.checkpoints / f"step-{step:06}"

    @contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """An empty folder to fill, which becomes ``checkpoint(step)``, whole and durable, when the block ends.

        This is the only place where a checkpoint is staged: whoever writes into the folder just writes files. Where
        the block raises, or the process ends in it, there is no new checkpoint. Raises ``RunError`` where a file
        cannot be written.
        """
        path = self.checkpoint(step)
        aside = path.with_name(f".{path.name}.part")
        try:
            for left in self.checkpoints.glob(".step-*.part"):  # Of a process that was killed meanwhile.
                shutil.rmtree(left, ignore_errors=True)
            self.checkpoints.mkdir(exist_ok=True)
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

    def prune(self, checkpoints: Collection[Path]) -> None:
        """Remove ``checkpoints``; what is left of one when the process ends in the middle does not look like one."""
        for path in checkpoints:
            aside = path.with_name(f".{path.name}.part")
            with suppress(OSError):  # Somebody else removes it too; the next checkpoint tries again.
                path.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def reopen(self, config: Config) -> None:
        """Make the folder of a run that has ended ready for another process of the run, which goes by ``config``.

        The caller holds the folder's lock. Raises ``RunFolderError`` where the folder cannot be written to.
        """
        from agentrl.config.loader import dump_yaml

        try:
            for name in ("checkpoints", "logs"):
                (self.path / name).mkdir(exist_ok=True)
            write_atomically(self.config, dump_yaml(config, self.path))
            reserve(self.summary)
            self.summary.unlink(missing_ok=True)  # It told how the run ended the last time.
        except OSError as error:
            raise _cannot_write_to(self.path, error) from error

    def info(self, config: Config) -> RunInfo:
        """The run that ``config`` describes, in this folder."""
        if config.sft.data is not None:
            return self._imitation(config, config.sft.data)
        tasks, held_out, reward = config.tasks.train, config.tasks.eval, config.reward
        return RunInfo(
            self.name,
            self.path,
            config.agent.name,
            config.model.name,
            steps=config.training.steps,
            episodes_per_step=config.rollout.tasks_per_step * config.rollout.group_size,
            tasks="of sessions" if config.is_online else tasks.name,
            held_out=None if held_out is None else held_out.name,
            reward="of sessions" if config.is_online else None if reward is None else reward.name,
            kind="replay" if config.is_replay else "training",
        )

    def _imitation(self, config: Config, data: str) -> RunInfo:
        held_out = config.sft.held_out_data or (f"{config.sft.held_out:.3g} of them" if config.sft.held_out else None)
        return RunInfo(
            self.name,
            self.path,
            "sft",
            config.model.name,
            steps=config.training.steps,
            tasks=Path(data).name,
            held_out=held_out,
            kind="imitation",
        )

    def write_summary(self, summary: Summary) -> None:
        """Write ``summary.json`` whole or not at all. Raises ``RunError`` where that cannot be done."""
        try:
            write_atomically(self.summary, json.dumps(summary.to_json(), indent=2) + "\n")
        except OSError as error:
            raise cannot_write(self.summary, error) from error


def read_summary(path: Path) -> Summary:
    """The summary that a run wrote to ``path``. Raises ``RunError`` where there is none, or it is not a summary."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"no summary at {path}: {error.strerror}", fix="a run writes it when it ends; was it killed?"
        ) from error
    except ValueError as error:
        raise _not_a_summary(path, "it is not JSON") from error
    known = {each.name for each in dataclasses.fields(Summary)}
    if not isinstance(found, dict) or not isinstance(found.get("outcome"), str):
        raise _not_a_summary(path, "it is no JSON object with an outcome")
    if unknown := sorted(found.keys() - known):
        raise _not_a_summary(path, f"this version knows no {unknown[0]!r} in it")
    if not isinstance(found.get("steps", 0), int):
        raise _not_a_summary(path, "its steps are no number")
    return Summary(**found)


def _not_a_summary(path: Path, why: str) -> RunError:
    return RunError(
        f"{path} is not a run's summary: {why}",
        fix="restore it from a copy, or delete it: the run then counts as killed, and can be resumed",
    )


def run_names(runs: str | os.PathLike[str] = "runs") -> list[str]:
    """The names of the runs in the folder ``runs``, sorted."""
    return sorted(config.parent.name for config in Path(runs).expanduser().glob("*/config.yaml"))


def newest_run(runs: Path) -> Path:
    """The training run in the folder ``runs`` that was started last. Raises ``ConfigError`` where there is none."""
    found = [config for config in runs.glob("*/config.yaml") if (config.parent / "checkpoints").is_dir()]
    if not found:
        raise ConfigError(f"there is no run in {runs}", fix="set run.dir to the folder that holds the runs")
    return max(found, key=lambda config: config.stat().st_mtime_ns).parent


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that saved ``checkpoint``; ``None`` where the checkpoint is not in a run folder."""
    run = checkpoint.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else None


def default_name(agent: str, now: datetime) -> str:
    """The last part of the agent's reference, and the time: ``math-20261124-091500``."""
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
    if _is_replay(path / "config.yaml"):
        fix = "set run.name to another name; a run of agentrl replay is not resumed"
    else:
        verb = "sft" if RunFolder(path).conversations.exists() else "train"
        fix = f"resume it with `agentrl {verb} --resume {path}`, or set run.name to another name"
    return ConfigError(f"the run folder {path} exists already", fix=fix)


def _is_replay(config: Path) -> bool:
    """Whether a run's ``config.yaml`` names a run that it trains from."""
    from agentrl.config.section import plain
    from agentrl.config.syntax import parse_document

    try:
        written = plain(parse_document(config.read_text(encoding="utf-8"), str(config)).values)
        return bool(written["replay"]["run"])
    except (OSError, ValueError, ConfigError, LookupError, TypeError):
        return False


def _make_unique(parent: Path, name: str) -> Path:
    """Make ``parent/name``, with a number after a name that is taken: two runs may start in one second."""
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
    if config.replay.run is not None:
        return default_name(f"{Path(config.replay.run).name}-replay", now())
    if config.sft.data is None:
        return default_name(config.agent.name, now())
    return default_name(f"sft-{Path(config.sft.data).stem}", now())


def _made(parent: Path, make: Callable[[], Path]) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return make()
    except OSError as error:
        raise _cannot_make(parent, error) from error


def _cause(error: BaseException, folder: Path) -> OSError | None:
    """The operating system's error behind ``error``; ``None`` where ``error`` is not that of a write."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, AgentRLError) or not isinstance(error, Exception):
        return None
    # Libraries raise errors of their own, of which not all say that the disk is full.
    if disk_is_full(error) or not _has_space(folder):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def _cannot_make(parent: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot make a run folder in {parent}: {error.strerror or error}",
        fix="free some space there, or set run.dir to another disk"
        if disk_is_full(error)
        else "set run.dir to a folder that you can write to",
    )


def _cannot_write_to(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot resume the run in {folder}: {error.strerror or error}",
        fix="free some space there" if disk_is_full(error) else "have the folder owned by whoever resumes the run",
    )


def _has_space(folder: Path) -> bool:
    """Whether more than 1 MiB is free in ``folder``: libraries that fail to write do not always say why."""
    return shutil.disk_usage(folder).free > _SPARE_BYTES


def write_atomically(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all, and durably. Raises ``OSError``, and then leaves nothing behind."""
    aside = _aside(path)
    try:
        with aside.open("r+" if aside.exists() else "w", encoding="utf-8") as file:
            file.write(text)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def reserve(path: Path, size: int = 4096) -> None:
    """Allocate ``size`` bytes for a later ``write_atomically`` to ``path``, which then works on a full disk too."""
    with _aside(path).open("w", encoding="utf-8") as file:
        file.write(" " * size)
        file.flush()
        os.fsync(file.fileno())


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def sync_tree(folder: Path) -> None:
    """Flush every file under ``folder``, and the folders themselves, to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Flush the content of a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_network_filesystem(path: Path) -> bool:
    """Whether ``path`` is on a file system that other machines may have mounted too, by its type."""
    kind = filesystem_type(path)
    return kind in _NETWORK_FILESYSTEMS or kind.startswith("fuse.")


def filesystem_type(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that holds ``path``, such as ``ext4``; empty where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target, best, kind = path.resolve(), -1, ""
    for fields in (line.split(" ") for line in lines):
        mount = Path(_unescape(fields[1]))
        # The last of several mounts on one point hides the others.
        if target.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), fields[2]
    return kind


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


class FolderLock:
    """Keeps a second writer out of ``folder``, from construction to ``release`` or the end of the process.

    The lock file names the process that holds it. Raises ``RunError`` where another process does. On a file system
    without locks nothing is locked, and ``held`` is false.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        self._path = folder / _LOCK
        self._lock = FileLock(self._path)
        self.held = False
        """Whether a second writer is kept out."""
        try:
            if acquired(self._lock, _PROBE_S):
                self._path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
                self.held = True
        except Timeout as error:
            raise RunError(
                f"another run is writing to {folder}: {_holder(self._path)}",
                fix="wait until it ends, or set run.name to another name",
            ) from error
        except OSError as error:
            self._lock.release()
            raise cannot_write(self._path, error) from error

    def release(self) -> None:
        """Let others write to the folder. Safe to call twice."""
        if self.held:
            # While it is held: removed later, it might be the lock file of the next writer.
            self._path.unlink(missing_ok=True)
        self.held = False
        self._lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is writing to the run folder ``folder``, as far as this machine can tell."""
    from filelock import FileLock, Timeout

    path = folder / _LOCK
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        known = acquired(lock)
    except Timeout:
        return True
    except OSError:  # A folder that this process may only read.
        known = False
    lock.release()
    return not known and _is_alive(_holder(path))


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _is_alive(holder: str) -> bool:
    match = re.fullmatch(r"process (\d+) on (.*)", holder)
    if match is None or match[2] != socket.gethostname():
        return match is not None
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
