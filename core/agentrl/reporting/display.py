"""Which display fits where stderr goes."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO, cast

from agentrl.reporting.plain import PlainReporter
from agentrl.reporting.reporter import Reporter

__all__ = ["open_display"]


def open_display(stream: TextIO | None = None, *, tracebacks: bool = False) -> Reporter:
    """A live display where ``stream``, by default stderr, is a terminal that can redraw; else plain lines.

    ``tracebacks`` says whether the first failure of each cause is shown with its traceback.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        return PlainReporter(stream, tracebacks=tracebacks)
    from rich.console import Console

    from agentrl.reporting.live import LiveReporter

    console = Console(file=cast(TextIO, _Terminal(stream)))
    if console.is_dumb_terminal or not console.is_terminal or not console.encoding.startswith("utf"):
        return PlainReporter(stream, tracebacks=tracebacks)
    return LiveReporter(console, tracebacks=tracebacks)


class _Terminal:
    """A terminal that may be closed while the run goes on: what is written then is lost, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()
