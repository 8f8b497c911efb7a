"""``logs/run.log``: the narration of a run, kept beside what it tells about."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from agentrl.reporting.plain import PlainReporter
from agentrl.runs.filesystem import cannot_write
from agentrl.runs.summary import Summary, final_lines

__all__ = ["RunLog"]


class RunLog(PlainReporter):
    """Plain lines, each with its local time, in a file; the first failure of each cause with its traceback.

    Raises ``RunError`` where it cannot be opened. Where its disk fills later it ends, and what the run itself
    writes there says so.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = datetime.now) -> None:
        try:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise cannot_write(path, error) from error
        self._now = now
        super().__init__(self._file, tracebacks=True)

    def run_finished(self, summary: Summary) -> None:
        """Write what came of it."""
        for line in final_lines(summary):
            self._line(line)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def _write(self, line: str) -> None:
        super()._write(f"{self._now():%Y-%m-%d %H:%M:%S} {line}")
