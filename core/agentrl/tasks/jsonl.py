"""Tasks from files of JSON: one object a line, or one list of objects."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Strict

from agentrl.config.models import Section
from agentrl.tasks.contract import Task
from agentrl.tasks.reading import Columns, as_object, chosen, parse_json
from agentrl.tasks.records import Records, Scan

__all__ = ["JsonRows", "JsonTasks", "JsonlTasks", "json_lines"]

_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some programs begin a UTF-8 file with."""
_SPACE = " \t\r\n"

Made = Callable[[Task, str], Task]
"""Makes a task of an object; the words say where that stands."""


class JsonRows:
    """The objects of a file, each made into a task when it is wanted; all are looked at once to begin with.

    Raises ``ConfigError`` with its place for a record that is no object, or that ``made`` refuses.
    """

    def __init__(self, path: Path, scan: Callable[[Path, Made], Scan], made: Made) -> None:
        self._made = made
        self._records = Records(path, scan(path, made))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Task:
        return _task(self._records.read(index), f"row {index + 1} of {self._records.path}", self._made)


class JsonlTasks(JsonRows):
    """One JSON object a line; blank lines are passed over. A name that ends in `.jsonl` is such a file."""

    class Settings(Section):
        """Keys of `jsonl`."""

        path: Annotated[Path, Strict(False)]
        """The file."""
        columns: dict[str, str] | None = None
        """All fields of a task and the keys of an object that they come from; null for all as they are."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(Path(os.path.expanduser(settings.path)), json_lines, _columns(settings.columns))


class JsonTasks(JsonRows):
    """One list of JSON objects; or one object a line. A name that ends in `.json` is such a file."""

    class Settings(JsonlTasks.Settings):
        """Keys of `json`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(Path(os.path.expanduser(settings.path)), _json, _columns(settings.columns))


def json_lines(path: Path, made: Made) -> Scan:
    """Finds the lines of ``path`` that hold something, and looks at each."""

    def scan(file: BinaryIO) -> Iterator[tuple[int, int]]:
        start = 0
        for number, line in enumerate(file, 1):
            end = start + len(line)
            if number == 1 and line.startswith(_MARK):
                start += len(_MARK)
                line = line.removeprefix(_MARK)
            if line.strip():
                _task(line, f"{path}:{number}", made)
                yield start, end
            start = end

    return scan


def _json(path: Path, made: Made) -> Scan:
    """Finds the items of the list that ``path`` holds; where it holds none, its lines."""

    def scan(file: BinaryIO) -> Iterator[tuple[int, int]]:
        if not file.read(4096).removeprefix(_MARK).lstrip().startswith(b"["):
            file.seek(0)
            yield from json_lines(path, made)(file)
            return
        file.seek(0)
        yield from _items(file.read(), path, made)

    return scan


def _items(raw: bytes, path: Path, made: Made) -> Iterator[tuple[int, int]]:
    # Read as Latin-1 a byte is a character, and what separates items is the same: so places in the text are
    # places in the file.
    text, decoder = raw.decode("latin-1"), json.JSONDecoder()
    place = _past(text, text.index("[") + 1)
    number = 0
    while text[place : place + 1] != "]" or number:
        number += 1
        here = f"item {number} of {path}"
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = len(text)  # What is wrong with it is said below.
        _task(raw[place:end], here, made)
        yield place, end
        place = _past(text, end)
        if text[place : place + 1] == "]":
            break
        if text[place : place + 1] != ",":
            parse_json(raw, str(path))
        place = _past(text, place + 1)
    if text[place + 1 :].strip(_SPACE):
        parse_json(raw, str(path))


def _past(text: str, place: int) -> int:
    """Where the next character after white space is."""
    while text[place : place + 1] in _SPACE and place < len(text):
        place += 1
    return place


def _columns(columns: Columns) -> Made:
    return partial(_chosen, columns=columns)


def _chosen(row: Task, place: str, columns: Columns) -> Task:
    return chosen(row, columns, place)


def _task(raw: bytes, place: str, made: Made) -> Task:
    return made(as_object(parse_json(raw, place), place), place)
