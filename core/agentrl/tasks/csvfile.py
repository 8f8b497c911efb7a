"""Tasks from a CSV file. Every field is text exactly as it is written: `007` stays `007`."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Field, Strict

from agentrl.config.section import Section
from agentrl.errors import ConfigError, shown
from agentrl.tasks.contract import Task
from agentrl.tasks.records import Records, chosen, decoded

__all__ = ["CsvTasks"]

_DELIMITERS = ",;\t|"

# Python's own limit is 128 KiB a field, for the whole process; a task may hold a document.
csv.field_size_limit(sys.maxsize)


class CsvTasks:
    """One task a row, with the fields that the first row names. A name that ends in `.csv` or `.tsv` is such a file."""

    class Settings(Section):
        """Keys of `csv`."""

        path: Annotated[Path, Strict(False)]
        """The file."""
        delimiter: str | None = Field(None, min_length=1, max_length=1)
        """The character between fields; null for a tab in a `.tsv` file and a comma in others."""
        columns: dict[str, str] | None = None
        """The fields of a task and the column that each comes from, `{question: problem}`; null for all as they are."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` for a file that cannot be read, is not CSV, or lacks a column."""
        path = Path(os.path.expanduser(settings.path))
        self._columns = settings.columns
        self._rows = partial(csv.reader, delimiter=settings.delimiter or _delimiter(path), strict=True)
        self._names: list[str] = []
        self._records = Records(path, partial(self._scan, path))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Task:
        place = f"row {index + 1} of {self._records.path}"
        text = decoded(self._records.read(index), place)
        return self._task(next(self._rows([text])), place)

    def _scan(self, path: Path, file: BinaryIO) -> Iterator[tuple[int, int]]:
        lines = _Lines(file, path)
        rows = self._rows(lines)
        try:
            self._names = _header(next(rows, []), path)
            start = lines.read
            for row in rows:
                if row:
                    self._task(row, f"{path}:{rows.line_num}")
                    yield start, lines.read
                start = lines.read
        except csv.Error as error:
            raise ConfigError(
                f"{path}:{rows.line_num} is not CSV: {error}", fix="quote fields that hold quotes or line breaks"
            ) from error

    def _task(self, row: list[str], place: str) -> Task:
        if len(row) != len(self._names):
            raise ConfigError(
                f"{place} has {len(row)} fields, and the first row names {len(self._names)}",
                fix="quote fields that hold the delimiter, or set `delimiter`",
            )
        return chosen(dict(zip(self._names, row, strict=True)), self._columns, place)


class _Lines(Iterable[str]):
    """The lines of a file as text; ``read`` counts the bytes that they took so far."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.read = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._file, 1):
            self.read += len(line)
            text = decoded(line, f"{self._path}:{number}")
            yield text.removeprefix("\ufeff") if number == 1 else text


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _header(names: list[str], path: Path) -> list[str]:
    if len(names) == 1 and (other := next((each for each in _DELIMITERS if each in names[0]), None)):
        raise ConfigError(
            f"{path} names one column, {shown(names[0], 60)}",
            fix=f"set delimiter={other!r} beside its path, or its name",
        )
    for name in names:
        if not name.strip() or names.count(name) > 1:
            raise ConfigError(f"{path} has a column named {name!r} in its first row", fix="name each column once")
    return names
