"""Tasks from a data set that the `datasets` library reads: a folder, a file, or an id on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentrl.config.models import Section
from agentrl.errors import ConfigError, near_matches, one_line
from agentrl.tasks.contract import Task

__all__ = ["HubTasks"]

_FILES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


class HubTasks:
    """One task a row."""

    class Settings(Section):
        """Keys of `datasets`."""

        path: str
        """A local folder or file (CSV, JSON, Parquet), or an id on the Hugging Face Hub."""
        split: str = "train"
        """Which split, in the library's notation: `test`, `train[:1000]`."""
        config: str | None = None
        """Which configuration, where the data set has several."""
        columns: dict[str, str] | None = None
        """Fields of a task and the columns they come from, `{question: problem}`; null for all columns as they are."""

    def __init__(self, settings: Settings) -> None:
        self._rows = _load(settings)
        self._columns = settings.columns or {name: name for name in self._rows.column_names}
        for column in self._columns.values():
            if column not in self._rows.column_names:
                raise ConfigError(
                    f"data set {settings.path!r} has no column {column!r}",
                    fix=near_matches(column, self._rows.column_names),
                )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Task:
        row = self._rows[index]
        return {field: _plain(row[column], column) for field, column in self._columns.items()}


def _load(settings: HubTasks.Settings) -> Any:
    import datasets

    path = Path(settings.path)
    try:
        if path.is_file():
            kind = _FILES.get(path.suffix)
            if kind is None:
                raise ConfigError(f"cannot tell the format of {settings.path!r}", fix=f"known: {', '.join(_FILES)}")
            return datasets.load_dataset(kind, data_files=settings.path, split=settings.split)
        return datasets.load_dataset(settings.path, settings.config, split=settings.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error)
        raise ConfigError(
            f"cannot load data set {settings.path!r}: {reason}", fix="check path, config and split"
        ) from error


def _plain(value: Any, column: str) -> Any:
    try:
        json.dumps(value)
    except TypeError as error:
        raise ConfigError(
            f"column {column!r} holds a {type(value).__name__}, which is not plain JSON",
            fix="name the other columns in `columns`",
        ) from error
    return value
