"""The folder of an environment while it is made: one maker at a time, and nothing half made that counts."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentrl.environments.known import environment_at
from agentrl.environments.places import LOG, RECORD
from agentrl.errors import PluginError

__all__ = ["emptied", "held", "remove_folder"]

_PREVIOUS = ".previous"
_DISCARDED = ".discarded"


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
    """``folder`` without what was in it, a complete environment being kept aside.

    Where the block raises, that environment comes back; where there was none only the log stays, and after an
    interrupt nothing.
    """
    previous = folder / _PREVIOUS
    is_kept = environment_at(folder) is not None
    _remove(folder, *([_PREVIOUS, _DISCARDED] if is_kept else os.listdir(folder)))
    try:
        if is_kept:
            previous.mkdir()
            _move(folder, previous, _record_first)
        yield
    except BaseException as error:
        _restore(folder, keep_log=isinstance(error, Exception))
        raise
    _remove(folder, _PREVIOUS)


def _restore(folder: Path, *, keep_log: bool) -> None:
    """Put back what was there before; renaming takes no time, so that a second interrupt finds it done."""
    discarded, previous = folder / _DISCARDED, folder / _PREVIOUS
    discarded.mkdir()
    _move(folder, discarded, _record_first, but=[LOG] if keep_log else [])
    if previous.is_dir():
        _move(previous, folder, _record_last, but=os.listdir(folder))
    _remove(folder, _PREVIOUS, _DISCARDED)
    if not os.listdir(folder):
        folder.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove an environment, its record first: what is left of it if this is interrupted counts no more."""
    _remove(folder, RECORD)
    shutil.rmtree(folder)


def _record_first(name: str) -> bool:
    return name != RECORD


def _record_last(name: str) -> bool:
    return name == RECORD


def _move(source: Path, target: Path, order: Callable[[str], bool], but: Collection[str] = ()) -> None:
    for name in sorted(os.listdir(source), key=order):
        if name not in (_PREVIOUS, _DISCARDED, *but):
            (source / name).rename(target / name)


def _remove(folder: Path, *names: str) -> None:
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
