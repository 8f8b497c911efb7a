"""From the part of a config to the task set that it means, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError, shown
from agentrl.tasks.contract import Task, TaskSet
from agentrl.tasks.files import READERS, is_file_name, reader
from agentrl.tasks.records import unreadable

if TYPE_CHECKING:
    from agentrl.plugins.building import PartLike
    from agentrl.plugins.manager import Plugins

__all__ = ["load_tasks"]


def load_tasks(plugins: Plugins, part: PartLike, *, at: str = "tasks") -> TaskSet:
    """The task set that ``part`` names: a registered one, a reference, or a file or folder of tasks.

    ``at`` is the configuration key of the part in messages. Raises ``ConfigError`` for a set that does
    not exist, has other keys, is empty or is no sequence; one that is not made of dicts raises when a
    task is taken.
    """
    return _Checked(_built(plugins, part, at), part.name)


def _built(plugins: Plugins, part: PartLike, at: str) -> Any:
    name = part.name
    if is_file_name(name) or (not plugins.has("tasks", name) and Path(os.path.expanduser(name)).is_dir()):
        return _file(part, at)
    try:
        return plugins.build("tasks", part, at=at)
    except ConfigError as error:
        if plugins.has("tasks", name) or ":" in name or name.endswith(".py"):
            raise
        raise _no_such(name, error) from error


def _file(part: PartLike, at: str) -> Any:
    from agentrl.plugins.building import build

    if "path" in part.options:
        raise ConfigError(f"there is no key '{at}.path'", fix=f"the name says already which file: {part.name!r}")
    path = Path(os.path.expanduser(part.name))
    try:
        path.stat()  # A library that reads it would look on the Hub for what is not on the disk.
    except OSError as error:
        raise unreadable(path, error) from error
    read = reader(part.name)
    assert read is not None
    return build(read, "tasks", _File(part.name, {"path": part.name, **part.options}), at, {})


@dataclass(frozen=True, slots=True)
class _File:
    """A file of tasks, as the part that its reader is built from."""

    name: str
    options: dict[str, Any]


def _no_such(name: str, error: ConfigError) -> ConfigError:
    """``error`` about a name that is not registered, with more to say of one that looks like a file or an id."""
    if os.path.exists(os.path.expanduser(name)) or (os.sep not in name and os.path.splitext(name)[1]):
        there = "is no file of tasks" if os.path.exists(os.path.expanduser(name)) else "is not there"
        return ConfigError(f"{name!r} {there}", fix=f"files of tasks end in {', '.join(READERS)}; or name a folder")
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        fix = f"{error.fix}; a data set of the Hugging Face Hub is {{name: datasets, path: {name}}}"
        return ConfigError(error.message, fix=fix)
    return error


class _Checked:
    """A task set that has tasks and gives nothing but dicts."""

    def __init__(self, tasks: Any, name: str) -> None:
        if not hasattr(tasks, "__len__") or not hasattr(tasks, "__getitem__"):
            raise ConfigError(
                f"task set {name!r} is a {type(tasks).__name__}, which has no length or no items",
                fix="register a function that returns a list of dicts",
            )
        if not len(tasks):
            raise ConfigError(f"task set {name!r} is empty", fix="name one that has tasks")
        self._tasks, self._name = tasks, name

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int, /) -> Task:
        task = self._tasks[range(len(self))[index]]  # generated sets may have no end of their own
        if not isinstance(task, dict):
            raise ConfigError(
                f"task {index} of {self._name!r} is a {type(task).__name__}: {shown(task, 80)}", fix="a task is a dict"
            )
        return task
