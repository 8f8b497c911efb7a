"""How it goes while other programs are at work: a status line on a terminal, plain lines off it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from agentrl.environments.creating import Narrator

__all__ = ["interruptible", "narrator"]


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


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP end things as Ctrl-C does, so that nothing stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that is ignored stays so: `nohup` means it.
    taken = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
