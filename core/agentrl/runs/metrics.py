"""``metrics.jsonl``: one JSON object a line, with the step, the time and flat numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import SupportsFloat

from agentrl.costs.cost import Cost
from agentrl.errors import RunError, cannot_write
from agentrl.runs.contract import MetricsLine
from agentrl.runs.folder import write_atomically

__all__ = ["MetricsLog", "MetricsReader", "cost_of", "cut_after"]

_MENDED = "restore the file from a copy, or delete that line: what it told is then missing"


class MetricsLog:
    """Appends lines to ``path``; a line is complete and can be read when ``append`` returns."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Add a line for ``step``; a number that is not finite becomes null.

        Raises ``ValueError`` for a metric called ``step`` or ``time``, and ``RunError`` where the line
        cannot be written; then no part of it is.
        """
        if clash := {"step", "time"} & set(metrics):
            raise ValueError(f"metrics may not be called {' or '.join(sorted(clash))}: every line has its own")
        numbers = {name: _number(value) for name, value in metrics.items()}
        self._write(_text(MetricsLine(step, round(self._clock(), 3), numbers)).encode())

    def _write(self, line: bytes) -> None:
        end = self._file.tell()
        try:
            # A disk that fills takes what still fits, and says why only when asked for the rest.
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise cannot_write(self._path, error) from error

    def sync(self) -> None:
        """Return once every line is on the disk. Raises ``RunError`` where that fails."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cut_after(path: Path, step: int) -> list[MetricsLine]:
    """Take the lines of steps after ``step`` out of the file at ``path``, and return them.

    A last line that was not written to its end goes too. The file is replaced whole or not at all. Raises ``RunError``
    where it cannot be read or written.
    """
    lines = MetricsReader(path).read()
    kept = [line for line in lines if line.step <= step]
    try:
        write_atomically(path, "".join(_text(line) for line in kept))
    except OSError as error:
        raise cannot_write(path, error) from error
    return [line for line in lines if line.step > step]


def cost_of(lines: Iterable[MetricsLine]) -> Cost:
    """What ``lines`` say that they cost, together."""
    return sum((Cost.of_metrics(line.metrics) for line in lines), Cost())


def _text(line: MetricsLine) -> str:
    return json.dumps({"step": line.step, "time": line.time} | line.metrics) + "\n"


class MetricsReader:
    """Reads ``path``, also while it is written; what was read before is not read again. May be used by any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[MetricsLine] = []
        self._end = 0
        self._file = 0
        """The inode of the file that was read: a run that is resumed puts another in its place."""
        self._reading = threading.Lock()

    def read(self) -> list[MetricsLine]:
        """Every complete line; a last one without its newline is still being written, and is left out.

        A file that is not there has no lines. Raises ``RunError`` where it cannot be read or a line is no JSON object.
        """
        with self._reading:
            for text in self._added():
                self._lines.append(_parsed(self._path, len(self._lines) + 1, text))
                self._end += len(text) + 1
            return list(self._lines)

    def _added(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._end:  # It is another file now.
                    self._lines, self._end, self._file = [], 0, found.st_ino
                file.seek(self._end)
                return file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read {self._path}: {error.strerror}") from error


def _parsed(path: Path, number: int, text: bytes) -> MetricsLine:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path}, line {number} is not JSON", fix=_MENDED) from error
    if not isinstance(row, dict) or not (isinstance(row.get("step"), int) and isinstance(row.get("time"), int | float)):
        raise RunError(f"{path}, line {number} is not a JSON object with a step and a time", fix=_MENDED)
    return MetricsLine(row.pop("step"), row.pop("time"), row)


def _number(value: SupportsFloat) -> float | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
