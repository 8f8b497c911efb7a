"""The folder of an environment while it is made or removed.

One process at a time may do either (``held``); an environment that is made anew is kept aside until its replacement is
complete (``emptied``); and nothing but an environment's own folder is ever removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentrl.environ import ENVIRONMENTS
from agentrl.environments.environment import (
    LOG,
    MANIFEST,
    environment_at,
    environment_name,
    environments,
    environments_folder,
    incomplete,
)
from agentrl.errors import ConfigError, PluginError, near_matches, one_line
from agentrl.locks import acquired

__all__ = ["emptied", "held", "remove_environment"]

_PREVIOUS = ".previous"
_DISCARDED = ".discarded"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from making or removing the environment in ``folder``, which is made if it is missing.

    The lock is on the file ``.NAME.lock`` beside the folder, which stays behind: others may be waiting for it. Raises
    ``PluginError`` where another process has the lock. On a file system without locks nobody is kept out.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        acquired(lock)
    except Timeout as error:
        raise PluginError(
            f"another process is making or removing the environment {folder.name!r}", fix="wait until it ends"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """Empty ``folder`` for the block, which makes an environment in it; a complete one that was there is kept aside.

    Where the block raises, that environment comes back. Where there was none, only the log stays, and after an
    interrupt nothing.
    """
    previous = folder / _PREVIOUS
    is_kept = environment_at(folder) is not None
    _remove(folder, *([_PREVIOUS, _DISCARDED] if is_kept else os.listdir(folder)))
    try:
        if is_kept:
            previous.mkdir()
            _move(folder, previous, _manifest_first)
        yield
    except BaseException as error:
        _restore(folder, keep_log=isinstance(error, Exception))
        raise
    _remove(folder, _PREVIOUS)


def _restore(folder: Path, *, keep_log: bool) -> None:
    """Put back what was there before; renaming takes no time, so that a second interrupt finds it done."""
    discarded, previous = folder / _DISCARDED, folder / _PREVIOUS
    discarded.mkdir()
    _move(folder, discarded, _manifest_first, but=[LOG] if keep_log else [])
    if previous.is_dir():
        _move(previous, folder, _manifest_last, but=os.listdir(folder))
    _remove(folder, _PREVIOUS, _DISCARDED)
    if not os.listdir(folder):
        folder.rmdir()


def remove_environment(name: str) -> Path:
    """Remove the environment ``name``, complete or not, and return the folder that it was in.

    Raises ``ConfigError`` where there is no such environment, and ``PluginError`` where the folder cannot be removed
    or another process is at work in it.
    """
    folder = environments_folder() / environment_name(name)
    removable = {*(known.path for known in environments()), *incomplete()}
    if folder not in removable:
        if folder.exists():
            raise ConfigError(f"{folder} holds something that is no environment", fix="remove it yourself")
        raise ConfigError(
            f"there is no environment {name!r}", fix=near_matches(folder.name, (p.name for p in removable))
        )
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link to another place", fix="remove it yourself")
    try:
        with held(folder):
            _remove_folder(folder)
    except OSError as error:
        raise PluginError(
            f"cannot remove {folder}: {error.strerror or one_line(error)}", fix=f"is {ENVIRONMENTS} yours to write to?"
        ) from error
    return folder


def _remove_folder(folder: Path) -> None:
    """Remove an environment, its manifest first: what is left of it if this is interrupted counts no more."""
    _remove(folder, MANIFEST)
    shutil.rmtree(folder)


def _manifest_first(name: str) -> bool:
    return name != MANIFEST


def _manifest_last(name: str) -> bool:
    return name == MANIFEST


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
