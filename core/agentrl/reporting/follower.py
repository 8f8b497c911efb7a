"""A follower: tells of a run that another process trains, as that process tells its own reporter, from its folder.

What a run writes is read again and again: its metrics, its episodes, and the notes and warnings in its log. Nothing is
written, and nothing that the run waits for is held for longer than a read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from agentrl.errors import one_line
from agentrl.reporting.contract import Reporter
from agentrl.reporting.plain import Interesting, Progress, reading_text, run_text, step_text
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import MetricsLine
from agentrl.runs.folder import RunFolder
from agentrl.runs.reader import Run

__all__ = ["Follower", "standing_lines"]

_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (note|warning): (.*)")
_STARTING, _ROLLING_OUT, _LEARNING, _EVALUATING, _SERVING = (
    *("starting", "rolling out", "learning", "evaluating"),
    "serving",
)
"""What a run does, as far as its folder shows it, in the words of the run's own reporter."""


class _Told(Protocol):
    """What both a reporter and the progress of a run are told."""

    def episode_finished(self, episode: Episode) -> object: ...
    def step_finished(self, step: int, metrics: dict[str, float]) -> object: ...
    def evaluation_finished(self, step: int, results: dict[str, float]) -> object: ...
    def warning(self, text: str) -> object: ...


class Follower:
    """Follows ``run``; ``progress`` is what is known of it. Used by one thread.

    ``catch_up`` takes in what there is; after it ``tell`` tells a reporter over the same ``progress`` what is new.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.time) -> None:
        """``clock`` returns seconds since the epoch, as the run's own records have them."""
        self.run = run
        self._info = run.info
        self._clock = clock
        self._at: float | None = None
        """The time of what is being told; ``None`` for the present."""
        self.progress = Progress(self._now)
        self._lines = 0
        """Lines of metrics that have been told."""
        self._last_id = 0
        """The id of the last episode that has been told."""
        self._folder = RunFolder(run.path)
        self._log = _Tail(self._folder.logs / "run.log")
        self._rolled_out = 0
        """Episodes of training that no step has taken yet."""

    def catch_up(self) -> None:
        """Take in what the run has left so far. Raises what the reader of the run raises."""
        begun, lines = self._begun(), self.run.metrics()
        # Steps of a process before this one: their rewards are drawn, and their time is not counted.
        earlier = [line for line in lines if line.time < begun]
        self.progress.run = self._info
        for line in earlier:
            self._line(line, self.progress)
        self._at = begun
        step = self.progress.step
        self.progress.run_started(replace(self._info, resumed_from=step) if step else self._info)
        self._at = None
        for line in lines[len(earlier) :]:
            self._line(line, self.progress)
        self._lines = len(lines)
        for kind, text in self._log.read():
            if kind == "warning":
                self.progress.warning(text)
        self._episodes(self.progress)

    def tell(self, reporter: Reporter) -> None:
        """Tell ``reporter``, which shows ``progress``, what is new since the last time."""
        for kind, text in self._log.read():
            (reporter.warning if kind == "warning" else reporter.note)(text)
        lines = self.run.metrics()
        # Read before and told after the episodes: those of a step are there before its metrics are.
        last = self._episodes(cast(_Told, reporter))
        if len(lines) < self._lines:  # A process that goes on with the run has cut what it does again.
            self._lines = len(lines)
        for line in lines[self._lines :]:
            self._line(line, cast(_Told, reporter))
        self._lines = len(lines)
        self._activity(reporter, last)

    def _line(self, line: MetricsLine, told: _Told) -> None:
        self._at = line.time
        metrics = {name: value for name, value in line.metrics.items() if value is not None}
        if line.is_evaluation:
            told.evaluation_finished(line.step, metrics)
        else:
            told.step_finished(line.step, metrics)
            self._rolled_out = max(0, self._rolled_out - int(metrics.get("rollout/episodes", 0)))
        self._at = None

    def _episodes(self, told: _Told) -> Episode | None:
        """Tell of the episodes that are new, and return the last one of them."""
        if not self._folder.episodes.exists():  # The run is just beginning, or imitates conversations.
            return None
        before, last = self.progress.interesting, None
        for last in self.run.outlines(self._last_id):
            told.episode_finished(last)
            self._rolled_out += last.key.phase == "train"
        if last is not None:
            self._last_id = self.run.row(last.key).id
        interesting = self.progress.interesting
        if interesting is not None and interesting is not before:  # An outline has no words.
            self.progress.interesting = Interesting(interesting.why, self.run.episode(interesting.episode.key))
        return last

    def _activity(self, reporter: Reporter, last: Episode | None) -> None:
        """Tell what the run is doing; ``last`` is its newest episode where there is a new one."""
        known, planned = self.progress.activity, self._info.episodes_per_step
        name = self._doing("" if known is None else known.name, last)
        if known is None or known.name != name:
            reporter.activity_started(name, planned if name == _ROLLING_OUT and planned else None)
        if name == _ROLLING_OUT and self.progress.activity is not None:
            self.progress.activity.done = min(self._rolled_out, planned)

    def _doing(self, before: str, last: Episode | None) -> str:
        if self._info.kind != "training":
            return _LEARNING
        if self._info.tasks == "of sessions":
            return _SERVING
        if last is not None and last.key.phase != "train":
            return _EVALUATING
        if last is None and before != _LEARNING:
            return before or (_ROLLING_OUT if self.progress.step else _STARTING)
        return _LEARNING if self._rolled_out >= self._info.episodes_per_step else _ROLLING_OUT

    def _begun(self) -> float:
        """When the process began that writes to the run, or that wrote to it last."""
        for path in (self._folder.lock, self._folder.config):
            try:
                return path.stat().st_mtime
            except OSError:  # A run that has ended has no lock.
                continue
        return self._clock()

    def _now(self) -> float:
        return self._clock() if self._at is None else self._at


def standing_lines(progress: Progress) -> list[str]:
    """How a run stands that somebody begins to look at: what it is, its newest step, and its newest evaluation."""
    lines = [] if progress.run is None else [run_text(progress.run)]
    if progress.metrics:
        lines.append(step_text(progress, progress.tally))
    return [one_line(line) for line in [*lines, *map(reading_text, progress.readings[-1:])]]


class _Tail:
    """The notes and warnings in a log that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0

    def read(self) -> Iterator[tuple[str, str]]:
        """The kind and the text of each that is new; a line that is not written to its end yet is left for later."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._end)
                lines = file.read().split(b"\n")[:-1]
        except OSError:  # It says nothing that the run's other files do not say, but for these.
            return
        for line in lines:
            self._end += len(line) + 1
            if (found := _LINE.fullmatch(line)) is not None:
                yield found[1].decode(), found[2].decode(errors="replace")
