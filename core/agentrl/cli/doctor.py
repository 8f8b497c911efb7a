"""``agentrl doctor``: whether an agent can be trained here with a config, and what to do where it cannot."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from agentrl.cli.completion import complete_training
from agentrl.cli.output import program
from agentrl.cli.root import App
from agentrl.cli.settings import split_arguments
from agentrl.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from agentrl.doctor.report import Diagnosis, Finding, Section

__all__ = ["ExaminationDisplay", "Spinner", "doctor"]

_EPILOG = """\b
Examples:
  agentrl doctor
  agentrl doctor my_agent.py:MyAgent --config config.yaml rollout.group_size=16
  agentrl doctor camel-math --json
"""


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="[AGENT] [KEY=VALUE]...", shell_complete=complete_training)
@click.option("--config", "-c", "file", type=click.Path(path_type=Path), help="A YAML file of settings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def doctor(app: App, arguments: tuple[str, ...], file: Path | None, as_json: bool) -> int:
    """Find out whether training AGENT with this config would work here, and what to do where it would not.

    Takes what `agentrl train` takes. Looks at versions, plugins, the model's chat template and the machine, starts
    the inference engine, runs an episode, which it shows as a conversation, and a few groups, and takes a step of
    training with them in memory.
    Nothing is written, but a model that is not here is downloaded. The exit code is 0 where training would work, else
    that of the first problem.
    """
    from agentrl.config import resolve_config
    from agentrl.doctor.examination import Case, examine

    agent, settings = split_arguments(arguments, "agent")
    resolved = resolve_config(file, *settings, agent=agent)
    case = Case(resolved, app.plugins)
    logging.getLogger("agentrl").addHandler(logging.NullHandler())  # What is worth a warning is among the findings.
    # Taken now: what agents print goes to stderr.
    display = ExaminationDisplay(sys.stdout, _training(app, arguments, file), as_json=as_json, debug=app.debug)
    with display, contextlib.redirect_stdout(sys.stderr):
        diagnosis = examine(case, display)
    display.conclude(diagnosis)
    return diagnosis.exit_code


def _training(app: App, arguments: tuple[str, ...], file: Path | None) -> str:
    """The command that trains what is examined."""
    disabled = [part for name in app.disabled for part in ("-p", f"no:{name}")]
    config = [] if file is None else ["--config", str(file)]
    return shlex.join([program(), *disabled, "train", *arguments, *config])


_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red", "skipped": "bright_black"}
_LEVEL_WIDTH = max(map(len, _COLOURS))
_INDENT = 2


class ExaminationDisplay:
    """Writes findings to ``out`` as they come, or as JSON at the end, and the current activity to stderr.

    Of a hanging process it writes what is known, and ends it.
    """

    def __init__(self, out: TextIO, command: str, *, as_json: bool, debug: bool) -> None:
        """``command`` is the command that trains; the verdict names it when training would work."""
        self._out = out
        self._command = command
        self._as_json = as_json
        self._debug = debug
        self._spinner = Spinner()
        self._shown: Section | None = None
        self._headed: Section | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spinner.hide()

    def doing(self, section: Section, what: str) -> None:
        """Show the activity ``what`` of ``section``."""
        self._spinner.show(f"{section.name}: {what}", at_once=section is not self._shown)
        self._shown = section

    def found(self, section: Section, finding: Finding) -> None:
        """Write ``finding`` below the name of its section."""
        if self._as_json:
            return
        self._spinner.hide()
        if section is not self._headed:
            self._headed = section
            self._write(click.style(section.name, bold=True))
        level = click.style(finding.level.ljust(_LEVEL_WIDTH), fg=_COLOURS[finding.level])
        first, *others = self._lines(finding.text)
        self._write(f"{' ' * _INDENT}{level}  {first}")
        for line in others:
            self._write(f"{self._margin}{line}")
        if finding.fix is not None:
            for line in self._lines(f"fix: {finding.fix}"):
                self._write(f"{self._margin}{line}")
        for line in finding.details:
            self._write(click.style(f"{self._margin}| {printable(line)}", dim=True))

    def raised(self, error: Exception) -> None:
        """Print the traceback of ``error`` where the user asked for tracebacks."""
        if self._debug:
            import traceback

            self._spinner.hide()
            traceback.print_exception(error)

    def interrupted(self) -> None:
        """Say that the examination has been interrupted and is ending."""
        self._spinner.hide()
        click.echo("interrupted: ending what runs (Ctrl-C again to leave at once)", err=True)

    def left(self) -> None:
        """Take the spinner down."""
        self._spinner.hide()

    def stuck(self, diagnosis: Diagnosis) -> None:
        """Write what is known so far and end the process, because the main thread hangs."""
        self._spinner.hide()
        self.conclude(diagnosis)
        self._out.flush()
        os._exit(diagnosis.exit_code)

    def conclude(self, diagnosis: Diagnosis) -> None:
        """Write the verdict, or the whole diagnosis as JSON."""
        if self._as_json:
            self._write_json(diagnosis)
            return
        counts = [(len(diagnosis.of_level(level)), level) for level in ("problem", "warning")]
        counted = ", ".join(f"{count} {level}{'s' * (count > 1)}" for count, level in counts if count)
        if diagnosis.ready:
            ready = click.style("ready to train", fg="green", bold=True)
            futile = click.style("would train, but has nothing to learn from", fg="yellow", bold=True)
            verdict = ready if diagnosis.learns else futile
            self._write(f"{verdict}{f', {counted}' if counted else ''}: {printable(self._command)}")
        else:
            self._write(click.style(counted, fg="red", bold=True))

    @property
    def _margin(self) -> str:
        return " " * (_INDENT + _LEVEL_WIDTH + 2)

    def _lines(self, text: str) -> list[str]:
        """``text`` wrapped to fit beside the levels on a terminal; in one line elsewhere."""
        text = printable(text)
        if not self._out.isatty():
            return [text]
        width = max(40, shutil.get_terminal_size().columns - len(self._margin))
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]

    def _write(self, line: str) -> None:
        click.echo(line, file=self._out)

    def _write_json(self, diagnosis: Diagnosis) -> None:
        import json

        document: dict[str, Any] = {**diagnosis.to_json(), "command": self._command if diagnosis.ready else None}
        self._write(json.dumps(document, indent=2, ensure_ascii=False))


_INTERVAL_S = 5.0


class Spinner:
    """Shows one line at a time on stderr. ``hide`` clears it, so that something else can be written.

    Use it from any thread.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and sys.stderr.encoding.lower().startswith("utf")
        self._drawn: Progress | None = None
        self._said = float("-inf")
        self._lock = threading.RLock()

    def show(self, text: str, *, at_once: bool = True) -> None:
        """Show ``text``. Off a terminal, a line without ``at_once`` is left out soon after the last one."""
        with self._lock:
            if self._live:
                self._draw(text)
            elif at_once or time.monotonic() - self._said >= _INTERVAL_S:
                self._said = time.monotonic()
                click.echo(text, err=True)

    def hide(self) -> None:
        """Clear the line. Safe to call twice."""
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
