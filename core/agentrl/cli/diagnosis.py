"""What an examination finds, as people read it: a section a subject, a line a finding, and a verdict at the end."""

from __future__ import annotations

import os
import shutil
import textwrap
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from agentrl.cli.spinner import Spinner
from agentrl.errors import encodable

if TYPE_CHECKING:
    from agentrl.doctor.findings import Diagnosis, Finding, Section

__all__ = ["Told"]

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red", "skipped": "bright_black"}
_LEVEL_WIDTH = max(map(len, _COLOURS))
_INDENT = 2


class Told:
    """Writes findings to ``out`` as they come, or all of them at the end as JSON; tells on stderr what goes on.

    Of a hanging process it writes what is known, and ends it.
    """

    def __init__(self, out: TextIO, command: str, *, as_json: bool, debug: bool) -> None:
        """``command`` is what trains, once everything is well."""
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
        """Show it."""
        self._spinner.show(f"{section.name}: {what}", at_once=section is not self._shown)
        self._shown = section

    def found(self, section: Section, finding: Finding) -> None:
        """Write it, below the name of its section."""
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
            self._write(click.style(f"{self._margin}| {line}", dim=True))

    def raised(self, error: Exception) -> None:
        """Show where, to those who ask for it."""
        if self._debug:
            import traceback

            self._spinner.hide()
            traceback.print_exception(error)

    def interrupted(self) -> None:
        """Say it."""
        self._spinner.hide()
        click.echo("interrupted: ending what runs (Ctrl-C again to leave at once)", err=True)

    def left(self) -> None:
        """Leave the terminal as it was."""
        self._spinner.hide()

    def stuck(self, diagnosis: Diagnosis) -> None:
        """Say what is known, and leave: the main thread will not."""
        self._spinner.hide()
        self.conclude(diagnosis)
        self._out.flush()
        os._exit(diagnosis.exit_code)

    def conclude(self, diagnosis: Diagnosis) -> None:
        """Write the verdict."""
        if self._as_json:
            self._write_json(diagnosis)
            return
        counts = [(len(diagnosis.of_level(level)), level) for level in ("problem", "warning")]
        counted = ", ".join(f"{count} {level}{'s' * (count > 1)}" for count, level in counts if count)
        if diagnosis.ready:
            ready = click.style("ready to train", fg="green", bold=True)
            futile = click.style("would train, but has nothing to learn from", fg="yellow", bold=True)
            verdict = ready if diagnosis.learns else futile
            self._write(f"{verdict}{f', {counted}' if counted else ''}: {self._command}")
        else:
            self._write(click.style(counted, fg="red", bold=True))

    @property
    def _margin(self) -> str:
        return " " * (_INDENT + _LEVEL_WIDTH + 2)

    def _lines(self, text: str) -> list[str]:
        """``text`` as it fits beside the levels; whole where no person reads along."""
        if not self._out.isatty():
            return [text]
        width = max(40, shutil.get_terminal_size().columns - len(self._margin))
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]

    def _write(self, line: str) -> None:
        click.echo(encodable(line), file=self._out)

    def _write_json(self, diagnosis: Diagnosis) -> None:
        import json

        document: dict[str, Any] = {**diagnosis.to_json(), "command": self._command if diagnosis.ready else None}
        self._write(json.dumps(document, indent=2, ensure_ascii=False))
