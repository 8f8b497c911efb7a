"""Folders in which new weights are handed over to servers that see them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from agentrl import BackendError, RunError
from agentrl.inference.contract import Adapter, Weights

__all__ = ["WeightFolders", "choose_root", "own_folder"]

_MEMORY = Path("/dev/shm")  # noqa: S108 - its folders are private: mkdtemp makes them
_PREFIX = "agentrl-weights-"
_LOCK = "lock"
_MAKING_S = 600.0
"""A folder without a lock that is older than this, in seconds, belongs to a process that has ended."""
_VERSIONS = 2
"""How many versions are in the folder while one is written."""
_FLOAT32 = 2
"""How many times larger a learner's float32 weights may be than those of a checkpoint."""


class WeightFolders:
    """A folder of this process under ``root``, which holds a model folder for each version that is still needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._opened: tuple[Path, TextIO] | None = None

    def open(self) -> Path:
        """Make the folder once, and remove those of dead processes. Raises ``BackendError`` where that fails."""
        if self._opened is None:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                self._opened = own_folder(self.root, _PREFIX)
            except OSError as error:
                raise _unwritable(self.root, error.strerror or str(error)) from error
        return self._opened[0]

    def write(self, weights: Weights) -> Path:
        """Write ``weights`` and return their folder. Raises ``BackendError``, with nothing left, if that fails.

        No server hears of the folder before it is complete. One that a killed process left half written is removed at
        the next start.
        """
        folder = self.open() / f"v{weights.version}"
        try:
            weights.save(folder)
        except RunError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, error.message) from error
        return folder

    def write_adapter(self, adapter: Adapter, version: int) -> Path:
        """Write ``adapter`` into a folder that no version had before; raises as ``write`` does."""
        folder = Path(tempfile.mkdtemp(prefix=f"a{version}-", dir=self.open()))
        try:
            adapter.save(folder)
        except RunError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, error.message) from error
        return folder

    def copy(self, source: Path) -> Path:
        """Copy a model folder from elsewhere; raises as ``write`` does."""
        folder = self.open() / "start"
        try:
            shutil.copytree(source, folder)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _unwritable(self.root, str(error)) from error
        return folder

    def holds(self, folder: Path) -> bool:
        """Returns whether ``folder`` was written here."""
        return self._opened is not None and folder.parent == self._opened[0]

    def keep(self, needed: Iterable[Path]) -> None:
        """Remove all model folders but the ``needed`` ones."""
        kept = set(needed)
        for path in () if self._opened is None else self._opened[0].iterdir():
            if path not in kept and path.name != _LOCK:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder with everything in it. Safe to call twice."""
        opened, self._opened = self._opened, None
        if opened is not None:
            shutil.rmtree(opened[0], ignore_errors=True)
            opened[1].close()


def own_folder(root: Path, prefix: str) -> tuple[Path, TextIO]:
    """Make a folder under ``root`` whose name begins with ``prefix``, and remove those of processes that have ended.

    It is this process's as long as the file that is returned with it is open.
    """
    _sweep(root, prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()  # Somebody else took it for one that is left before it was locked.


def choose_root(given: Path | None, model_folder: Path) -> Path:
    """Returns ``given``; else shared memory, if it has room for such weights; else the folder for temporary files."""
    if given is not None:
        return Path(os.path.expanduser(given)).absolute()
    needed = _VERSIONS * _FLOAT32 * sum(file.stat().st_size for file in model_folder.glob("*.safetensors"))
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > needed:
        return _MEMORY
    return Path(tempfile.gettempdir())


def _sweep(root: Path, prefix: str) -> None:
    """Remove the folders of processes that have ended, and their locks with them."""
    for folder in root.glob(f"{prefix}*"):
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
    """Seconds since a folder last changed; 0 where it is gone."""
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0


def _unwritable(root: Path, reason: str) -> BackendError:
    return BackendError(
        f"new weights cannot be handed over in {root}: {reason}",
        fix="make room there, or set inference.backend.weights_dir to a folder that the servers see",
    )
