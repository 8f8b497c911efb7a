"""From the part of a config to the task set that it means, checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import ConfigError
from agentrl.tasks.contract import Task, TaskSet

if TYPE_CHECKING:
    from agentrl.plugins.building import PartLike
    from agentrl.plugins.manager import Plugins

__all__ = ["load_tasks"]


def load_tasks(plugins: Plugins, part: PartLike, *, at: str = "tasks") -> TaskSet:
    """The task set that ``part`` names; a name that ends in ``.jsonl`` is a file of tasks.

    ``at`` is the configuration key of the part in messages. Raises ``ConfigError`` for a set that does
    not exist, has other keys, is empty or is no sequence; one that is not made of dicts raises when a
    task is taken.
    """
    return _Checked(_file(part, at) if part.name.endswith(".jsonl") else plugins.build("tasks", part, at=at), part.name)


def _file(part: PartLike, at: str) -> TaskSet:
    from agentrl.tasks.jsonl import JsonlTasks

    if part.options:
        raise ConfigError(f"there is no key '{at}.{min(part.options)}'", fix="a task file takes none")
    return JsonlTasks(JsonlTasks.Settings(path=Path(part.name)))


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
                f"task {index} of {self._name!r} is a {type(task).__name__}: {task!r:.80}", fix="a task is a dict"
            )
        return task
