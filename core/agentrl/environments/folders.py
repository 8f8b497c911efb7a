"""The folder of an environment while it is made: one maker at a time, and nothing half made that counts."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agentrl.environments.known import environment_at
from agentrl.environments.places import LOG, RECORD
from agentrl.errors import PluginError

__all__ = ["emptied", "held", "remove_folder"]

_PREVIOUS = ".previous"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from making or removing the environment in ``folder``, which is made if it is missing.

    Raises ``PluginError`` where another holds it. A file system without such locks keeps nobody out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            os.close(descriptor)
            raise PluginError(
                f"another process is making or removing the environment {folder.name!r}", fix="wait until it ends"
            ) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """``folder`` without what is in it, a complete environment being kept aside.

    Where the block raises, that environment comes back; where there was none only the log stays, and after an
    interrupt nothing.
    """
    previous = folder / _PREVIOUS
    if environment_at(folder) is None:
        _remove_all_but(folder)
    else:
        shutil.rmtree(previous, ignore_errors=True)
        previous.mkdir()
        _move(folder, previous, _record_first)
    try:
        yield
    except BaseException as error:
        _remove_all_but(folder, _PREVIOUS, *([LOG] if isinstance(error, Exception) else []))
        if previous.is_dir():
            _move(previous, folder, _record_last)
            shutil.rmtree(previous)
        with suppress(OSError):
            folder.rmdir()
        raise
    shutil.rmtree(previous, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove an environment, its record first: what is left of it if this is interrupted counts no more."""
    (folder / RECORD).unlink(missing_ok=True)
    _remove_all_but(folder, LOG)
    shutil.rmtree(folder)


def _record_first(name: str) -> bool:
    return name != RECORD


def _record_last(name: str) -> bool:
    return name == RECORD


def _move(source: Path, target: Path, order: Callable[[str], bool]) -> None:
    for name in sorted(os.listdir(source), key=order):
        if name != _PREVIOUS and not (name == LOG and (target / LOG).exists()):
            (source / name).rename(target / name)


def _remove_all_but(folder: Path, *kept: str) -> None:
    for path in list(folder.iterdir()):
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
