"""Tasks from files of JSON: one object a line, one list of objects, or the lines of GSM8K."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Strict

from agentrl.config.section import Section
from agentrl.errors import ConfigError
from agentrl.tasks.contract import Task
from agentrl.tasks.records import Columns, Records, Scan, as_object, chosen, parse_json

__all__ = ["Gsm8kTasks", "JsonTasks", "JsonlTasks"]

_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some programs begin a UTF-8 file with."""
_SPACE = " \t\r\n"
_ANSWER = "#### "
"""What stands before the number at the end of a solution of GSM8K."""

MakeTask = Callable[[Task, str], Task]
"""Makes a task of a JSON object; the second argument says where the object stands, for messages."""


class _JsonRows:
    """The objects of a file, each made into a task when it is wanted.

    All are looked at once to begin with: a record that is not an object, or that ``make`` refuses, raises
    ``ConfigError`` with its place.
    """

    def __init__(self, path: Path, scan: Callable[[Path, MakeTask], Scan], make: MakeTask) -> None:
        path = Path(os.path.expanduser(path))
        self._make = make
        self._records = Records(path, scan(path, make))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Task:
        return _task(self._records.read(index), f"row {index + 1} of {self._records.path}", self._make)


class JsonlTasks(_JsonRows):
    """One JSON object a line; blank lines are skipped. A name that ends in `.jsonl` or `.ndjson` is such a file."""

    class Settings(Section):
        """Keys of `jsonl`."""

        path: Annotated[Path, Strict(False)]
        """The file."""
        columns: dict[str, str] | None = None
        """The fields of a task and the keys of the object that each comes from; null for all keys as they are."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` for a file that cannot be read, and for a line that does not hold an object."""
        super().__init__(settings.path, _json_lines, partial(_chosen, columns=settings.columns))


class JsonTasks(_JsonRows):
    """One list of JSON objects, or one object a line. A name that ends in `.json` is such a file."""

    class Settings(JsonlTasks.Settings):
        """Keys of `json`."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` for a file that cannot be read, and for an item that is not an object."""
        super().__init__(settings.path, _json_list, partial(_chosen, columns=settings.columns))


class Gsm8kTasks(_JsonRows):
    """GSM8K (Cobbe et al., 2021) in its authors' files: word problems, each with a worked solution.

    A task has `question`, `answer` (the number after ``####``, without thousands separators) and `solution`.
    """

    class Settings(Section):
        """Keys of `gsm8k`."""

        path: Annotated[Path, Strict(False)]
        """`train.jsonl` or `test.jsonl` of the data set."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` for a file that cannot be read, and for a line that is not of GSM8K."""
        super().__init__(settings.path, _json_lines, _word_problem)


def _word_problem(row: Task, place: str) -> Task:
    question, solution = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str) or _ANSWER not in solution:
        raise ConfigError(
            f"{place} is not GSM8K: it needs a question, and an answer that ends in '#### ' and a number",
            fix="use tasks {name: jsonl, path: …} for files of another shape",
        )
    working, answer = solution.rsplit(_ANSWER, 1)
    return {"question": question, "answer": answer.strip().replace(",", ""), "solution": working.strip()}


def _json_lines(path: Path, make: MakeTask) -> Scan:
    """Finds the lines of ``path`` that are not blank, and checks each."""

    def scan(file: BinaryIO) -> Iterator[tuple[int, int]]:
        start = 0
        for number, line in enumerate(file, 1):
            end = start + len(line)
            if number == 1 and line.startswith(_MARK):
                start += len(_MARK)
                line = line.removeprefix(_MARK)
            if line.strip():
                _task(line, f"{path}:{number}", make)
                yield start, end
            start = end

    return scan


def _json_list(path: Path, make: MakeTask) -> Scan:
    """Finds the items of the list that ``path`` holds; where it does not begin with a list, its lines."""

    def scan(file: BinaryIO) -> Iterator[tuple[int, int]]:
        if not file.read(4096).removeprefix(_MARK).lstrip().startswith(b"["):
            file.seek(0)
            yield from _json_lines(path, make)(file)
            return
        file.seek(0)
        yield from _items(file.read(), path, make)

    return scan


def _items(raw: bytes, path: Path, make: MakeTask) -> Iterator[tuple[int, int]]:
    # Read as Latin-1 a byte is a character, and what separates items is the same: so offsets in the text are
    # offsets in the file.
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
        _task(raw[place:end], here, make)
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


def _chosen(row: Task, place: str, columns: Columns) -> Task:
    return chosen(row, columns, place)


def _task(raw: bytes, place: str, make: MakeTask) -> Task:
    return make(as_object(parse_json(raw, place), place), place)
