"""From the part of a config that names tasks to a task set that is checked.

A name is that of a registered task set, a reference to code (``pkg.mod:Obj``), or a file or folder of tasks; which
reader a file has follows from its ending, by the table ``READERS``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError, about, shown
from agentrl.plugins.references import dotted_reference
from agentrl.tasks.contract import Task, TaskSet
from agentrl.tasks.records import unreadable

if TYPE_CHECKING:
    from agentrl.plugins.building import PartLike
    from agentrl.plugins.manager import Plugins

__all__ = ["READERS", "load_tasks", "reader_name"]

READERS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "datasets",
    ".arrow": "datasets",
    ".jsonl.gz": "datasets",
    ".json.gz": "datasets",
    ".csv.gz": "datasets",
    ".jsonl.zst": "datasets",
}
"""The task set that reads a file, by the file's ending in lower case. A folder is read by ``datasets``."""


def load_tasks(plugins: Plugins, part: PartLike, *, at: str = "tasks") -> TaskSet:
    """The task set that ``part`` names: a registered one, a reference, or a file or folder of tasks.

    ``at`` is the configuration key of the part, for messages. Raises ``ConfigError`` for a set that does not exist,
    takes other keys, is empty or is not a sequence. A set whose items are not dicts raises when an item is taken.
    """
    with about(at):
        return _Checked(_built(plugins, part, at), part.name)


def reader_name(name: str) -> str | None:
    """The registered name of the task set that reads a file or folder called ``name``; ``None`` for other names.

    A name with a known ending is a file's whether or not the file exists.
    """
    if Path(os.path.expanduser(name)).is_dir():
        return "datasets"
    found = _ending(name)
    return None if found is None else READERS[found]


def _ending(name: str) -> str | None:
    """The ending in ``READERS`` that a file's name has, in whatever case."""
    lower = name.lower()
    return max((each for each in READERS if lower.endswith(each)), key=len, default=None)


def _built(plugins: Plugins, part: PartLike, at: str) -> Any:
    name = part.name
    if _ending(name) is not None or (not plugins.has("tasks", name) and Path(os.path.expanduser(name)).is_dir()):
        return _of_file(part, at)
    try:
        return plugins.build("tasks", part, at=at)
    except ConfigError as error:
        if plugins.has("tasks", name) or ":" in name or name.endswith(".py") or dotted_reference(name):
            raise
        raise _no_such(name, error) from error


def _of_file(part: PartLike, at: str) -> Any:
    from agentrl.plugins.building import build

    if "path" in part.options:
        raise ConfigError(f"there is no key '{at}.path'", fix=f"the name says already which file: {part.name!r}")
    path = Path(os.path.expanduser(part.name))
    try:
        path.stat()  # A library that reads it would look on the Hub for what is not on the disk.
    except OSError as error:
        raise unreadable(path, error) from error
    kind = reader_name(part.name)
    assert kind is not None
    return build(_reader(kind), "tasks", _File(part.name, {"path": part.name, **part.options}), at, {})


def _reader(kind: str) -> Callable[..., Any]:
    """The class that ``READERS`` means; each is imported when it is needed, for some import large libraries."""
    if kind == "csv":
        from agentrl.tasks.csvfile import CsvTasks

        return CsvTasks
    if kind == "datasets":
        from agentrl.tasks.hub import HubTasks

        return HubTasks
    from agentrl.tasks.jsonl import JsonlTasks, JsonTasks

    return JsonTasks if kind == "json" else JsonlTasks


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
    """A task set that is known to have tasks and to give nothing but dicts."""

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
        task = self._tasks[range(len(self))[index]]  # A generated set may have no end of its own.
        if not isinstance(task, dict):
            raise ConfigError(
                f"task {index} of {self._name!r} is a {type(task).__name__}: {shown(task, 80)}", fix="a task is a dict"
            )
        return task
