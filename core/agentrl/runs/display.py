"""Which display fits where stderr goes."""

from __future__ import annotations

import sys
from typing import TextIO

from agentrl.runs.plain import PlainReporter
from agentrl.runs.reporter import Reporter

__all__ = ["open_display"]


def open_display(stream: TextIO | None = None, *, tracebacks: bool = False) -> Reporter:
    """A live display where ``stream``, by default stderr, is a terminal that can redraw; else plain lines.

    ``tracebacks`` says whether the first failure of each cause is shown with its traceback.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        return PlainReporter(stream, tracebacks=tracebacks)
    from rich.console import Console

    from agentrl.runs.live import LiveReporter

    console = Console(file=stream)
    if console.is_dumb_terminal or not console.is_terminal or not console.encoding.startswith("utf"):
        return PlainReporter(stream, tracebacks=tracebacks)
    return LiveReporter(console, tracebacks=tracebacks)
