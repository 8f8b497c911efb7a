"""The records of a file: found once, and read from the disk when one is wanted.

So a set of tasks takes the memory of sixteen bytes a task, whatever the file's size.
"""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from agentrl.errors import ConfigError, near_matches

__all__ = ["Records", "Scan", "unreadable"]

Scan = Callable[[BinaryIO], Iterator[tuple[int, int]]]
"""Looks through an open file, and gives where each record begins and ends."""


class Records:
    """The byte ranges that ``scan`` finds in the file at ``path``, which stays open.

    Raises ``ConfigError`` for a file that cannot be read, and what ``scan`` raises.
    """

    def __init__(self, path: Path, scan: Scan) -> None:
        self.path = path
        self._starts, self._ends = array("Q"), array("Q")
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(path, error) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._now()
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                for start, end in scan(file):
                    self._starts.append(start)
                    self._ends.append(end)
        except OSError as error:
            raise unreadable(path, error) from error

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> bytes:
        """The record at ``index``. Raises ``ConfigError`` where the file is no longer what was looked through."""
        start = self._starts[index]
        raw = os.pread(self._descriptor, self._ends[index] - start, start)
        if self._now() != self._state:
            raise ConfigError(
                f"the task file {str(self.path)!r} was changed while it was in use",
                fix="leave it as it is until the run has ended, or replace it by a new file of its name",
            )
        return raw

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns


def unreadable(path: Path, error: OSError) -> ConfigError:
    """What is said of a file of tasks that ``error`` keeps from being read."""
    fix = "name a readable UTF-8 file"
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        beside = _beside(path)
        near = near_matches(path.name, beside) if beside else f"no file there ends in {path.suffix}"
        fix = f"in {path.parent.absolute()}: {near}"
    return ConfigError(f"cannot read the task file {str(path)!r}: {error.strerror or error}", fix=fix)


def _beside(path: Path) -> list[str]:
    """The files of a folder that may have been meant."""
    return [file.name for file in path.parent.iterdir() if file.suffix.lower() == path.suffix.lower()]
