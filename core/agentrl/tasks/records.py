"""The records of a task file, and how one becomes a task.

A file is looked through once, when a task set is built: each record is checked and the place where it begins and ends
is noted. After that a record is read from the disk whenever its task is wanted, so a task set takes sixteen bytes of
memory a task, however large the file is. What is wrong with a record is a ``ConfigError`` that names its place.
"""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from agentrl.errors import ConfigError, near_matches, one_line
from agentrl.tasks.contract import Task

__all__ = ["Columns", "Records", "Scan", "as_object", "chosen", "decoded", "parse_json", "unreadable"]

Scan = Callable[[BinaryIO], Iterator[tuple[int, int]]]
"""Looks through an open file and yields, for each record, the byte at which it begins and the one after its end."""

Columns = Mapping[str, str] | None
"""The fields of a task and the columns that they come from; ``None`` for all columns under their own names."""

_DEEPEST = 100
"""Levels of nesting that all who handle a task can take: it is copied, sent to workers and stored."""


class Records:
    """The records that ``scan`` finds in the file at ``path``, which stays open.

    Raises ``ConfigError`` for a file that cannot be read, and whatever ``scan`` raises.
    """

    def __init__(self, path: Path, scan: Scan) -> None:
        self.path = path
        self._starts, self._ends = array("Q"), array("Q")
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(path, error) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._now()
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                for start, end in scan(file):
                    self._starts.append(start)
                    self._ends.append(end)
        except OSError as error:
            raise unreadable(path, error) from error

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> bytes:
        """The bytes of the record at ``index``. Raises ``ConfigError`` where the file has changed since the scan."""
        start = self._starts[index]
        raw = os.pread(self._descriptor, self._ends[index] - start, start)
        if self._now() != self._state:
            raise ConfigError(
                f"the task file {str(self.path)!r} was changed while it was in use",
                fix="leave it as it is until the run has ended, or replace it by a new file of its name",
            )
        return raw

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns


def unreadable(path: Path, error: OSError) -> ConfigError:
    """The error for a task file that ``error`` keeps from being read; for a missing one with names that are near."""
    fix = "name a readable UTF-8 file"
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        beside = [file.name for file in path.parent.iterdir() if file.suffix.lower() == path.suffix.lower()]
        near = near_matches(path.name, beside) if beside else f"no file there ends in {path.suffix}"
        fix = f"in {path.parent.absolute()}: {near}"
    return ConfigError(f"cannot read the task file {str(path)!r}: {error.strerror or error}", fix=fix)


def decoded(raw: bytes, place: str) -> str:
    """``raw`` as text. Raises ``ConfigError`` that names ``place`` where it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{place} is not UTF-8: {error.reason} at byte {error.start}", fix="save it as UTF-8"
        ) from error


def parse_json(raw: bytes, place: str) -> Any:
    """The value that ``raw`` holds as JSON.

    Raises ``ConfigError`` that names ``place`` where it is not JSON, holds NaN, an infinity or a number with too many
    digits for Python, or is nested too deeply.
    """
    text = decoded(raw, place).rstrip()
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{place} is not JSON: {error.msg} at column {error.colno}", fix="write one JSON object a line"
        ) from error
    except RecursionError as error:
        raise _too_deep(place) from error
    except ValueError as error:  # A number that Python will not make of so many digits, or that is none.
        reason = one_line(error).partition(";")[0]
        raise ConfigError(
            f"{place} holds a number that cannot be read: {reason}", fix="write it as a string"
        ) from error
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise _too_deep(place)
    return value


def as_object(value: Any, place: str, what: str = "a task") -> Task:
    """``value`` itself, which is to be ``what``. Raises ``ConfigError``, naming ``place``, if it is no JSON object."""
    if not isinstance(value, dict):
        shown = json.dumps(value)
        raise ConfigError(f"{place} holds {shown[:40]}, not an object", fix=f"{what} is a JSON object")
    return value


def chosen(row: Task, columns: Columns, place: str) -> Task:
    """The task that ``columns`` makes of ``row``. Raises ``ConfigError`` for a column that the row lacks."""
    if columns is None:
        return row
    for column in columns.values():
        if column not in row:
            raise ConfigError(f"{place} has no column {column!r}", fix=near_matches(column, row))
    return {field: row[column] for field, column in columns.items()}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _too_deep(place: str) -> ConfigError:
    return ConfigError(f"{place} is nested deeper than {_DEEPEST} levels", fix="write the inner part as a string")


def _depth(value: Any) -> int:
    """How many lists and dicts lie around the innermost value; without recursion, whose limit is what is in doubt."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
