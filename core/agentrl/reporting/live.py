"""Progress on a terminal: a few lines that are drawn again and again."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agentrl.errors import one_line
from agentrl.reporting.plain import FAILURES, plan_text, reading_text, traceback_lines
from agentrl.reporting.progress import Progress, Reading
from agentrl.reporting.reporter import Plan
from agentrl.reporting.sparkline import sparkline
from agentrl.rollout.contract import Episode
from agentrl.runs.summary import Summary, duration, reward_text

__all__ = ["LiveReporter"]

_FRAMES_PER_SECOND = 5
_CURVE_WIDTH = 40
_BESIDE_CURVE = 36


class LiveReporter:
    """Draws on ``console`` from the first stage on; what happens once scrolls past above the drawing.

    The terminal is as it was after ``close``, which also runs when the interpreter ends.
    """

    def __init__(
        self, console: Console, clock: Callable[[], float] = time.monotonic, *, tracebacks: bool = False
    ) -> None:
        """``tracebacks`` says whether the first failure of each cause is shown, above, with its own."""
        self._tracebacks = tracebacks
        self._console = console
        self._progress = Progress(clock)
        self._spinner = Spinner("dots")
        self._live: Live | None = None

    def run_started(self, plan: Plan) -> None:
        """Say what is going to happen."""
        self._progress.run_started(plan)
        self._say(plan_text(plan), "bold")

    def stage(self, name: str, episodes: int | None = None) -> None:
        """Show what goes on."""
        self._progress.start_stage(name, episodes)
        self._start()

    def episode_finished(self, episode: Episode) -> None:
        """Count."""
        for failure in self._progress.episode_finished(episode):
            if self._tracebacks and failure.traceback:
                self._console.print(Text("\n".join(traceback_lines(episode, failure)), style="dim"))

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the step's numbers."""
        self._progress.step_finished(step, metrics)

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """Say what was measured; it stays readable above."""
        self._say(reading_text(self._progress.evaluation_finished(step, results)))

    def note(self, text: str) -> None:
        """Say it above."""
        self._say(f"note: {text}", "cyan")

    def warning(self, text: str) -> None:
        """Say it above."""
        self._say(f"warning: {text}", "yellow")

    def run_finished(self, summary: Summary) -> None:
        """Draw a last time and let it stand."""
        self.close()

    def close(self) -> None:
        """Stop drawing and give the cursor back. Safe to call twice."""
        if self._live is not None:
            self._progress.stage = None
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

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(one_line(text), style=style))

    def _draw(self) -> RenderableType:
        progress = self._progress
        width = max(8, min(_CURVE_WIDTH, self._console.width - _BESIDE_CURVE))
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True, min_width=8)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        if (plan := progress.plan) is not None:
            rows.add_row("step", _steps(progress, plan, width))
        if progress.rewards:
            rows.add_row("reward", _reward(progress.rewards, width))
        if progress.readings:
            rows.add_row("held out", _held_out(progress.readings[0], progress.readings[-1]))
        if (speed := progress.throughput) is not None:
            rows.add_row("speed", f"{speed.episodes:,.1f} episodes/s   {speed.tokens:,.0f} tokens/s")
        if seconds := progress.seconds_by_stage:
            rows.add_row("seconds", "   ".join(f"{name} {spent:.2f}" for name, spent in seconds.items()))
        for kind, causes in progress.tally.kinds.items():
            for commonest in causes.commonest(1):
                text = f"{causes.total:,}, {commonest.count:,}x {commonest.episode}: {commonest.reason}"
                rows.add_row(kind, Text(one_line(text), style="yellow" if kind in FAILURES else ""))
        if (stage := progress.stage) is not None:
            self._spinner.update(text=Text(f"{stage.text}   {duration(progress.elapsed(stage))}"))
            rows.add_row("now", self._spinner)
        return Group("", rows)


def _steps(progress: Progress, plan: Plan, width: int) -> RenderableType:
    cells: list[RenderableType] = [
        f"{progress.step:,}/{plan.steps:,}",
        ProgressBar(total=max(plan.steps, 1), completed=progress.step, width=width),
    ]
    if progress.step < plan.steps and (left := progress.seconds_left) is not None:
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
    pairs = [("sampled", first.sampled, newest.sampled), ("greedy", first.greedy, newest.greedy)]
    return "   ".join(
        ("" if newest is first or before is None else f"{reward_text(before)} → ") + f"{reward_text(after)} {name}"
        for name, before, after in pairs
        if after is not None
    )
