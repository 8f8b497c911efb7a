"""How it goes while other programs are at work: a status line on a terminal, plain lines off it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from agentrl.environments.creating import Narrator

__all__ = ["narrator"]


class _Plain:
    """Lines on stderr."""

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def show(self, line: str) -> None:
        click.echo(f"  {line}", err=True)


class _Live:
    """The newest line of output beside a spinner; what is said scrolls past above it."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console = console
        self._status = status

    def say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))
        self._status.update(Text(text, overflow="ellipsis", no_wrap=True))

    def show(self, line: str) -> None:
        from rich.text import Text

        if line.strip():
            self._status.update(Text(line.strip(), overflow="ellipsis", no_wrap=True))


@contextmanager
def narrator() -> Iterator[Narrator]:
    """Tells on stderr, in the way that fits where it goes."""
    if not sys.stderr.isatty():
        yield _Plain()
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield _Live(console, status)
