"""What goes on now, on stderr: a line that comes and goes on a terminal, else a plain one now and then."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Spinner"]

_INTERVAL_S = 5.0


class Spinner:
    """Shows one thing at a time. ``hide`` leaves the terminal as it was, so that something else can be written.

    Use it from any thread.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and sys.stderr.encoding.lower().startswith("utf")
        self._drawn: Progress | None = None
        self._said = float("-inf")
        self._lock = threading.RLock()

    def show(self, text: str, *, at_once: bool = True) -> None:
        """Show ``text`` from now on; without ``at_once`` a plain line is left out where the last one is not old."""
        with self._lock:
            if self._live:
                self._draw(text)
            elif at_once or time.monotonic() - self._said >= _INTERVAL_S:
                self._said = time.monotonic()
                click.echo(text, err=True)

    def hide(self) -> None:
        """Show nothing. Safe to call twice."""
        with self._lock:
            drawn, self._drawn = self._drawn, None
            if drawn is not None:
                drawn.stop()

    def _draw(self, text: str) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        if self._drawn is None:
            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
            self._drawn = Progress(*columns, console=Console(stderr=True), transient=True)
            self._drawn.add_task(text)
            self._drawn.start()
        else:
            self._drawn.update(self._drawn.task_ids[0], description=text)
