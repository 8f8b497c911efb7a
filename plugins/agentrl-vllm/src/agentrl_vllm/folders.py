"""Where the learner's weights are handed over: folders in shared memory, gone with the process that wrote them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from agentrl.errors import BackendError, RunError
from agentrl.inference.contract import Weights

__all__ = ["WeightFolders", "choose_root"]

_MEMORY = Path("/dev/shm")  # noqa: S108 - its folders are private: mkdtemp makes them
_PREFIX = "agentrl-weights-"
_LOCK = "lock"
_MAKING_S = 600.0
"""A folder that has no lock for so long was never finished: whoever made it is gone."""
_VERSIONS = 2
"""Versions that are there at once while one is written."""
_FLOAT32 = 2
"""How much larger a learner's float32 weights may be than a checkpoint's."""


class WeightFolders:
    """A folder of this process's own under ``root``, with a model folder for each version that is still needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._opened: tuple[Path, TextIO] | None = None

    def open(self) -> Path:
        """Make the folder, and remove what dead processes have left. Raises ``BackendError`` where that cannot be."""
        if self._opened is None:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                _sweep(self.root)
                folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.root))
                lock = (folder / _LOCK).open("w")
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                raise _unwritable(self.root, error.strerror or str(error)) from error
            self._opened = folder, lock
        return self._opened[0]

    def write(self, weights: Weights) -> Path:
        """Write ``weights`` into a folder of their version. Raises ``BackendError``, with nothing left, if that fails.

        No server hears of the folder before it is complete, and the sweep at the next start removes one that a killed
        process left half written.
        """
        folder = self.open() / f"v{weights.version}"
        try:
            weights.save(folder)
        except RunError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, error.message) from error
        return folder

    def copy(self, source: Path) -> Path:
        """As ``write``, of a model folder that is elsewhere."""
        folder = self.open() / "start"
        try:
            shutil.copytree(source, folder)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, str(error)) from error
        return folder

    def holds(self, folder: Path) -> bool:
        """Whether it was written here."""
        return self._opened is not None and folder.parent == self._opened[0]

    def keep(self, needed: Iterable[Path]) -> None:
        """Remove all folders but those that are ``needed``."""
        kept = set(needed)
        for path in () if self._opened is None else self._opened[0].iterdir():
            if path not in kept and path.name != _LOCK:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove everything. Safe to call twice."""
        opened, self._opened = self._opened, None
        if opened is not None:
            shutil.rmtree(opened[0], ignore_errors=True)
            opened[1].close()


def choose_root(given: Path | None, model_folder: Path) -> Path:
    """The folder given; else shared memory, if it has room for such weights; else the one for temporary files."""
    if given is not None:
        return Path(os.path.expanduser(given)).absolute()
    needed = _VERSIONS * _FLOAT32 * sum(file.stat().st_size for file in model_folder.glob("*.safetensors"))
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > needed:
        return _MEMORY
    return Path(tempfile.gettempdir())


def _sweep(root: Path) -> None:
    """Remove folders whose process has ended: its lock has gone with it."""
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            if _age(folder) > _MAKING_S:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # It is in use, or another user's.
            continue


def _age(folder: Path) -> float:
    """Seconds since something was made in it last; 0 where it is gone."""
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0


def _unwritable(root: Path, reason: str) -> BackendError:
    return BackendError(
        f"new weights cannot be handed over in {root}: {reason}",
        fix="make room there, or set inference.backend.weights_dir to a folder that the servers see",
    )
