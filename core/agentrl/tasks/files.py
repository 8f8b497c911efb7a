"""Which reader a file of tasks has, by its ending: one table, for whoever reads, lists or gives advice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["READERS", "ending", "is_file_name", "reader", "reader_name"]

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


def ending(name: str) -> str | None:
    """The ending in ``READERS`` that a file's name has, in whatever case."""
    lower = name.lower()
    return max((each for each in READERS if lower.endswith(each)), key=len, default=None)


def is_file_name(name: str) -> bool:
    """Whether the name of a task set is that of a file of tasks, whether that is there or not."""
    return ending(name) is not None


def reader(name: str) -> Callable[..., Any] | None:
    """What builds the task set of a file or folder called ``name``; ``None`` where it is neither."""
    kind = reader_name(name)
    return None if kind is None else _class(kind)


def reader_name(name: str) -> str | None:
    """The task set that reads a file or folder called ``name``; ``None`` where it is neither."""
    found = ending(name)
    if Path(os.path.expanduser(name)).is_dir():
        return "datasets"
    return None if found is None else READERS[found]


def _class(kind: str) -> Callable[..., Any]:
    if kind == "jsonl":
        from agentrl.tasks.jsonl import JsonlTasks

        return JsonlTasks
    if kind == "json":
        from agentrl.tasks.jsonl import JsonTasks

        return JsonTasks
    if kind == "csv":
        from agentrl.tasks.csvfile import CsvTasks

        return CsvTasks
    from agentrl.tasks.hub import HubTasks

    return HubTasks
