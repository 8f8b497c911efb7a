"""Which reporter a run has: the display that fits where stderr goes, and several reporters as one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

from agentrl.reporting.contract import Reporter
from agentrl.reporting.plain import PlainReporter, Progress
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import RunInfo, Summary

__all__ = ["Reporters", "default_reporter"]


def default_reporter(
    stream: TextIO | None = None, *, tracebacks: bool = False, progress: Progress | None = None
) -> Reporter:
    """A live display where ``stream``, by default stderr, is a terminal that can redraw; else plain lines.

    ``tracebacks`` says whether the first failed episode of each reason is shown with the traceback of its agent, and
    ``progress`` is what is known of the run already.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        return PlainReporter(stream, tracebacks=tracebacks, progress=progress)
    from rich.console import Console

    from agentrl.reporting.live import LiveReporter

    console = Console(file=cast(TextIO, _Terminal(stream)))
    if console.is_dumb_terminal or not console.is_terminal or not console.encoding.startswith("utf"):
        return PlainReporter(stream, tracebacks=tracebacks, progress=progress)
    return LiveReporter(console, tracebacks=tracebacks, progress=progress)


class _Terminal:
    """A terminal that may be closed while the run goes on; what is written to it then is dropped."""

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


class Reporters:
    """Passes every call on to each of ``reporters``, in their order; see ``Reporter`` for the methods."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = list(reporters)

    def add(self, reporter: Reporter) -> None:
        """Pass later calls on to ``reporter`` as well."""
        self._reporters.append(reporter)

    def run_started(self, run: RunInfo) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.run_started(run)

    def activity_started(self, name: str, episodes: int | None = None) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.activity_started(name, episodes)

    def episode_finished(self, episode: Episode) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.episode_finished(episode)

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.step_finished(step, metrics)

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.evaluation_finished(step, results)

    def note(self, text: str) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.note(text)

    def warning(self, text: str) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.warning(text)

    def run_finished(self, summary: Summary) -> None:
        """See ``Reporter``."""
        for reporter in self._reporters:
            reporter.run_finished(summary)

    def close(self) -> None:
        """Close every reporter."""
        for reporter in self._reporters:
            reporter.close()
