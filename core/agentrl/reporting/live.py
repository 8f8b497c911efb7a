"""Progress on a terminal: a few lines that are drawn again and again."""

from __future__ import annotations

import atexit
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agentrl.errors import one_line, shortened
from agentrl.reporting.plain import (
    FAILURES,
    Interesting,
    Progress,
    Reading,
    duration,
    reading_text,
    reward_text,
    run_text,
    traceback_lines,
)
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import RunInfo, Summary

__all__ = ["LiveReporter", "sparkline"]

_FRAMES_PER_SECOND = 5
_CURVE_WIDTH = 40
_BESIDE_CURVE = 36
_LONGEST_WORDS = 500
"""Characters that are looked at of what an episode ended with."""
_BLOCKS = "▁▂▃▄▅▆▇█"


class LiveReporter:
    """Draws on ``console`` from the first activity on; lines about single events scroll past above the drawing.

    ``close`` leaves the terminal as it was; it also runs when the interpreter ends.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        *,
        tracebacks: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """``tracebacks`` says whether the first failed episode of each reason is shown with its traceback.

        ``progress`` is what is known of the run already, by default nothing.
        """
        self._tracebacks = tracebacks
        self._console = console
        self._progress = progress or Progress(clock)
        self._told: tuple[Interesting, str] | None = None
        """The last interesting episode, and what is drawn of it: its messages are not looked at again."""
        self._spinner = Spinner("dots")
        self._live: Live | None = None

    def run_started(self, run: RunInfo) -> None:
        """Print what is going to be trained."""
        self._progress.run_started(run)
        self._print(run_text(run), "bold")

    def activity_started(self, name: str, episodes: int | None = None) -> None:
        """Draw the activity from now on."""
        self._progress.activity_started(name, episodes)
        self._start()

    def episode_finished(self, episode: Episode) -> None:
        """Count it, and print the traceback of a failure whose reason is new."""
        for failure in self._progress.episode_finished(episode):
            if self._tracebacks and failure.traceback:
                self._console.print(Text("\n".join(traceback_lines(episode, failure)), style="dim"))

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Draw the numbers of the step."""
        self._progress.step_finished(step, metrics)

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """Print the held-out rewards above the drawing."""
        self._print(reading_text(self._progress.evaluation_finished(step, results)))

    def note(self, text: str) -> None:
        """Print it above the drawing."""
        self._print(f"note: {text}", "cyan")

    def warning(self, text: str) -> None:
        """Print it above the drawing."""
        self._progress.warning(text)
        self._print(f"warning: {text}", "yellow")

    def run_finished(self, summary: Summary) -> None:
        """Draw a last time and leave the drawing there."""
        self.close()

    def close(self) -> None:
        """Stop drawing and show the cursor again. Safe to call twice."""
        if self._live is not None:
            self._progress.activity = None
            live, self._live = self._live, None
            live.stop()
            atexit.unregister(self.close)

    def _start(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=_FRAMES_PER_SECOND,
                # What an agent prints goes above the drawing; into a pipe or a file it goes untouched.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
            atexit.register(self.close)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(one_line(text), style=style))

    def _draw(self) -> RenderableType:
        progress = self._progress
        width = max(8, min(_CURVE_WIDTH, self._console.width - _BESIDE_CURVE))
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True, min_width=8)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        if (run := progress.run) is not None:
            rows.add_row("step", _steps(progress, run, width))
        if progress.rewards:
            rows.add_row("reward", _reward(progress.rewards, width))
        if progress.losses:
            curve = sparkline(progress.losses, width)
            rows.add_row("loss", Text.assemble((f"{progress.losses[-1]:.3f}", "bold"), "  ", (curve, "green")))
        if progress.readings:
            rows.add_row("held out", _held_out(progress.readings[0], progress.readings[-1]))
        if (ledger := progress.ledger).received:
            rows.add_row("ledger", str(ledger))
        if (age := progress.staleness) is not None:
            rows.add_row("staleness", f"{age[0]:.2f} versions on average, {age[1]:.0f} at most")
        if progress.imitates and progress.metrics:
            rows.add_row("speed", f"{progress.trained_per_second:,.0f} trained tokens/s")
        elif (speed := progress.throughput) is not None:
            rows.add_row("speed", f"{speed.episodes:,.1f} episodes/s   {speed.tokens:,.0f} tokens/s")
        if seconds := progress.seconds_by_part:
            rows.add_row("seconds", "   ".join(f"{name} {spent:.2f}" for name, spent in seconds.items()))
        for kind, causes in progress.tally.kinds.items():
            for commonest in causes.commonest(1):
                text = f"{causes.total:,}, {commonest.count:,}x {commonest.episode}: {commonest.reason}"
                rows.add_row(kind, Text(one_line(text), style="yellow" if kind in FAILURES else ""))
        if findings := progress.findings:
            step, said = findings[-1]
            count = f"{len(findings)} findings, the last " if len(findings) > 1 else ""
            rows.add_row("health", Text(one_line(f"{count}after step {step}: {said}"), style="yellow"))
        elif progress.step:
            rows.add_row("health", "nothing found")
        if (interesting := progress.interesting) is not None:
            rows.add_row("episode", Text(self._line_of(interesting)))
        if (activity := progress.activity) is not None:
            self._spinner.update(text=Text(f"{activity.text}   {duration(progress.elapsed(activity))}"))
            rows.add_row("now", self._spinner)
        return Group("", rows)

    def _line_of(self, interesting: Interesting) -> str:
        """The line of an episode, made once: the drawing comes again and again."""
        if self._told is None or self._told[0] is not interesting:
            self._told = interesting, _interesting(interesting)
        return self._told[1]


def _interesting(interesting: Interesting) -> str:
    """Why an episode is worth a look, and what was said last in it."""
    from agentrl.reporting.transcript import last_words

    episode = interesting.episode
    if episode.failure is not None:
        return one_line(f"failed: {episode.key}: {episode.failure}")
    reward = "" if episode.reward is None else f", reward {reward_text(episode.reward)}"
    said = episode.mistake or last_words(episode)
    return f"{interesting.why}: {episode.key}{reward}{f': {one_line(shortened(said, _LONGEST_WORDS))}' if said else ''}"


def _steps(progress: Progress, run: RunInfo, width: int) -> RenderableType:
    cells: list[RenderableType] = [
        f"{progress.step:,}/{run.steps:,}",
        ProgressBar(total=max(run.steps, 1), completed=progress.step, width=width),
    ]
    if progress.step < run.steps and (left := progress.seconds_left) is not None:
        cells.append(f"{duration(left)} left")
    row = Table.grid(padding=(0, 2))
    row.add_row(*cells)
    return row


def _reward(rewards: Sequence[float | None], width: int) -> Text:
    newest, known = rewards[-1], [reward for reward in rewards if reward is not None]
    parts: list[str | tuple[str, str]] = [("none" if newest is None else reward_text(newest), "bold")]
    if len(known) > 1:
        parts += [
            "  ",
            (sparkline(rewards, width), "green"),
            (f"  {reward_text(min(known))} to {reward_text(max(known))}", "dim"),
        ]
    return Text.assemble(*parts)


def _held_out(first: Reading, newest: Reading) -> str:
    if newest.loss is not None:
        before = "" if newest is first or first.loss is None else f"{first.loss:.3f} → "
        return f"{before}{newest.loss:.3f} loss"
    pairs = [("sampled", first.sampled, newest.sampled), ("greedy", first.greedy, newest.greedy)]
    return "   ".join(
        ("" if newest is first or before is None else f"{reward_text(before)} → ") + f"{reward_text(after)} {name}"
        for name, before, after in pairs
        if after is not None
    )


def sparkline(values: Sequence[float | None], width: int) -> str:
    """A curve of ``values`` in one line of at most ``width`` characters, scaled from the least value to the greatest.

    Where there are more values than characters, each character shows the mean of an equal share of them; a share
    without a value is blank.
    """
    shares = _shares(values, width)
    known = [value for value in shares if value is not None]
    if not known:
        return " " * len(shares)
    # Halved, since the difference of the largest floats would overflow.
    low, span = min(known) / 2, max(known) / 2 - min(known) / 2
    return "".join(" " if value is None else _block((value / 2 - low) / span if span else 0.5) for value in shares)


def _block(height: float) -> str:
    return _BLOCKS[min(int(height * len(_BLOCKS)), len(_BLOCKS) - 1)]


def _shares(values: Sequence[float | None], width: int) -> list[float | None]:
    count = min(len(values), max(width, 1))
    bounds = [index * len(values) // count for index in range(count + 1)] if count else [0]
    return [_mean(values[start:end]) for start, end in itertools.pairwise(bounds)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    # Rounding may carry a mean beyond its values, and the mean of the largest floats to infinity.
    return min(max(sum(value / len(known) for value in known), min(known)), max(known))
