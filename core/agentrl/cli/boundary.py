"""Where errors end: one line on stderr and an exit code, a traceback only for those who ask or for our own bugs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from agentrl.errors import AgentRLError, one_line

__all__ = ["INTERRUPTED", "report_errors"]

INTERRUPTED = 130
_PIPE_CLOSED = 1
"""As click has it where it meets a closed pipe itself."""


def report_errors(run: Callable[[], object], *, debug: Callable[[], bool]) -> int:
    """Run a command line and return its exit code; an ``int`` that it returns is that code."""
    try:
        result = run()
        sys.stdout.flush()
    except AgentRLError as error:
        if debug():
            _print_traceback()
        _report(str(error))
        return error.exit_code
    except click.ClickException as error:
        _report(_usage(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered cannot be written; the interpreter would complain about it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return result if isinstance(result, int) else 0


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _report(message: str) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {one_line(message)}", err=True)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (see '{context.command_path} --help')" if context else ""
    return error.format_message().rstrip(".") + hint
