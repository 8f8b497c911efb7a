"""Tasks from a data set that the `datasets` library reads: a folder, a file, or an id on the Hugging Face Hub.

The library keeps the data in a file that it maps into memory, so only the tasks in use take memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from agentrl.config.section import Section
from agentrl.errors import ConfigError, near_matches, one_line
from agentrl.tasks.contract import Task

__all__ = ["HubTasks"]

_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""The library's name for the format of a file, by the file's ending."""

_PACKED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}


class HubTasks:
    """One task a row of a data set; its fields are the columns."""

    class Settings(Section):
        """Keys of `datasets`."""

        path: str
        """A folder or file (CSV, JSON, Parquet or Arrow, compressed or not), a folder that `save_to_disk` wrote, or an
        id on the Hugging Face Hub."""
        split: str = "train"
        """The split, in the library's notation: `test`, `train[:1000]`."""
        config: str | None = None
        """The configuration, where the data set has several."""
        columns: dict[str, str] | None = None
        """The fields of a task and the column that each comes from, `{question: problem}`; null for all as they are."""
        options: dict[str, Any] = Field(default_factory=dict)
        """Further options of the library's reader, such as `{delimiter: ";"}` for CSV. Fields of CSV are text as it is
        written, unless the data set declares its `features`."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` for a data set that cannot be loaded, or that lacks a column."""
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


def _is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote ``folder``."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _load(settings: HubTasks.Settings) -> Any:
    import datasets

    path = Path(os.path.expanduser(settings.path))
    try:
        with _quietly():
            if path.is_dir() and _is_saved(path):
                return _saved(path, settings)
            if path.is_file():
                files = {"data_files": str(path)}
                return _read(_format(path), None, settings.split, files | _tabs(path) | settings.options)
            where = str(path) if path.is_dir() else settings.path
            return _read(where, settings.config, settings.split, settings.options)
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, ArithmeticError, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error.__cause__ or error)
        raise ConfigError(
            f"cannot load data set {settings.path!r}: {reason}", fix="check path, config, split and options"
        ) from error


def _read(path: str, config: str | None, split: str, options: Mapping[str, Any]) -> Any:
    import datasets
    from datasets.packaged_modules.csv.csv import CsvConfig

    known = datasets.load_dataset_builder(path, config, **options).config
    if not isinstance(known, CsvConfig) or known.features is not None:
        return datasets.load_dataset(path, config, split=split, **options)
    # The library guesses types from what fields look like, and makes 7.0 of 007: told the columns, it does not.
    first = datasets.load_dataset(path, config, split=split, **{**options, "nrows": 1})
    features = datasets.Features({name: datasets.Value("string") for name in first.column_names})
    return datasets.load_dataset(
        path, config, split=split, **{"keep_default_na": False, "features": features, **options}
    )


def _saved(folder: Path, settings: HubTasks.Settings) -> Any:
    """What `save_to_disk` wrote; a split of it may be a slice, as in ``train[:100]``."""
    import datasets

    for key, value in (("config", settings.config), ("options", settings.options)):
        if value:
            raise ConfigError(f"{settings.path!r} was written by save_to_disk: {key} has no effect", fix="leave it out")
    found = datasets.load_from_disk(str(folder))
    name, bracket, _ = settings.split.partition("[")
    if isinstance(found, datasets.DatasetDict):
        if name not in found:
            raise ConfigError(f"{settings.path!r} has no split {name!r}", fix=near_matches(name, found))
        found = found[name]
    elif name != "train" and name != str(found.split):
        raise ConfigError(f"{settings.path!r} holds one data set, no split {name!r}", fix="leave `split` out")
    return _sliced(found, settings.split, name) if bracket else found


def _sliced(found: Any, split: str, name: str) -> Any:
    import datasets

    [part] = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(found)})
    return found.select(range(part.from_ or 0, len(found) if part.to is None else part.to))


def _format(path: Path) -> str:
    *_, ending = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED] or [""]
    if ending not in _BUILDERS:
        raise ConfigError(f"cannot tell the format of {str(path)!r}", fix=f"known: {', '.join(_BUILDERS)}")
    return _BUILDERS[ending]


def _tabs(path: Path) -> dict[str, str]:
    return {"delimiter": "\t"} if ".tsv" in path.suffixes else {}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's progress bars, which would scroll through a run's own display."""
    import datasets

    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


def _plain(value: Any, column: str) -> Any:
    try:
        json.dumps(value)
    except TypeError as error:
        raise ConfigError(
            f"column {column!r} holds a {type(value).__name__}, which is not plain JSON",
            fix="name the other columns in `columns`, or a file of JSON or CSV itself as the tasks: it keeps its text",
        ) from error
    return value
