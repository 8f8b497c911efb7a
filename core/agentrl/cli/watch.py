"""``agentrl watch``: the live display of a run that another process trains, from its folder alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from agentrl.cli.boundary import INTERRUPTED, code_of
from agentrl.cli.completion import complete_run
from agentrl.cli.selection import chosen_run

if TYPE_CHECKING:
    from agentrl.runs.contract import RunState
    from agentrl.runs.reader import Run

__all__ = ["watch"]

_EPILOG = """\b
Examples:
  agentrl watch
  agentrl watch quickstart
  ssh -t MACHINE agentrl watch /data/runs/quickstart
  agentrl watch quickstart && agentrl eval runs/quickstart

\b
Exit codes: that of the run, 0 completed, 1 failed or killed, 75 stopped by SIGTERM and resumable,
130 interrupted; 130 also where Ctrl-C ends the watching, 2 usage.
"""
_POLL_S = 1.0
"""Seconds between two looks at the folder."""
_GRACE_S = 20.0
"""Seconds that a run has from writing its config to taking hold of its folder."""


@click.command(epilog=_EPILOG)
@click.argument("run", required=False, shell_complete=complete_run)
def watch(run: str | None) -> int:
    """Show RUN live, a folder or a name, by default the training run that was started last, until it ends.

    The display is that of `agentrl train`, drawn from what the run writes to its folder; where standard error is no
    terminal it is plain lines. Of a run that has ended only the end is shown. Ctrl-C ends the watching, and leaves the
    run alone. The exit code is that of the run.
    """
    from agentrl.errors import RunError, printable
    from agentrl.reporting.plain import final_lines

    chosen = chosen_run(run)
    if _state(chosen) == "running":
        try:
            _follow(chosen)
        except KeyboardInterrupt:
            click.echo(f"no longer watching; {chosen.name} goes on", err=True)
            return INTERRUPTED
    summary = chosen.summary
    if summary is None:
        raise RunError(
            f"the run {chosen.name} was killed: no process writes to it, and none has said how it ended",
            fix=f"go on with it: agentrl train --resume {chosen.path}",
        )
    for line in final_lines(summary):
        click.echo(printable(line))
    is_told_to_end = summary.outcome == "interrupted" and summary.signal == "SIGTERM" and chosen.config.is_online
    return 0 if is_told_to_end else code_of(summary.outcome, summary.signal)


def _follow(run: Run) -> None:
    """Show what the run does until it ends."""
    from agentrl.reporting.follower import Follower, standing_lines
    from agentrl.reporting.reporter import default_reporter

    follower = Follower(run)
    follower.catch_up()
    reporter = default_reporter(progress=follower.progress)
    for line in standing_lines(follower.progress):
        click.echo(line, err=True)
    try:
        while True:
            # Asked first: what the run writes before its end is told in any case.
            is_over = _state(run) != "running"
            follower.tell(reporter)
            if is_over:
                return
            time.sleep(_POLL_S)
    finally:
        reporter.close()


def _state(run: Run) -> RunState:
    """The state of the run; one that has just been made counts as running before a process holds its folder."""
    state = run.state
    is_new = time.time() - (run.path / "config.yaml").stat().st_mtime < _GRACE_S
    return "running" if state == "killed" and is_new else state
