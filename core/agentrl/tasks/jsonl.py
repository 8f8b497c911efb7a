"""Tasks from a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Strict

from agentrl.config.models import Section
from agentrl.errors import ConfigError
from agentrl.tasks.contract import Task

__all__ = ["JsonlTasks", "read_jsonl"]


class JsonlTasks:
    """One JSON object a line; blank lines are passed over. A name that ends in `.jsonl` is such a file."""

    class Settings(Section):
        """Keys of `jsonl`."""

        path: Annotated[Path, Strict(False)]
        """The file."""

    def __init__(self, settings: Settings) -> None:
        self._tasks = read_jsonl(settings.path)

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int, /) -> Task:
        return self._tasks[index]


def read_jsonl(path: Path) -> list[Task]:
    """The objects in ``path``. Raises ``ConfigError`` with the line's number for one that is not an object."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the task file {str(path)!r}: {error}", fix="name a readable UTF-8 file"
        ) from error
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, place: str) -> Task:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{place} is not JSON: {error.msg} at column {error.colno}", fix="write one JSON object a line"
        ) from error
    if not isinstance(row, dict):
        raise ConfigError(f"{place} holds {line.strip()[:40]}, not an object", fix="write one JSON object a line")
    return row
