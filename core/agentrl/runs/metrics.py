"""``metrics.jsonl``: one JSON object a line, with the step, the time and flat numbers."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import SupportsFloat

from agentrl.errors import RunError, cannot_write

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Appends to ``path``; a line is there whole, and readable at once, when ``append`` returns."""

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
        row = {"step": step, "time": round(self._clock(), 3)} | {
            name: _number(value) for name, value in metrics.items()
        }
        self._write(json.dumps(row).encode() + b"\n")

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

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Every line of ``path`` as ``{"step": …, "time": …, name: number, …}``.

    A last line without its newline is one that is being written, and is left out. Raises ``RunError``
    where the file cannot be read or a line is not an object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse(path: Path, number: int, line: str) -> dict[str, float | None]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RunError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise RunError(f"{path}, line {number} is not a JSON object")
    return row


def _number(value: SupportsFloat) -> float | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
