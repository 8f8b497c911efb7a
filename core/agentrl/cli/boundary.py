"""Where errors end: one line on stderr and an exit code, a traceback only for those who ask or for our own bugs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

import click

from agentrl.errors import AgentRLError, one_line
from agentrl.extras import missing_extras

__all__ = ["INTERRUPTED", "report_errors"]

INTERRUPTED = 130
_CANNOT_WRITE = 1
"""As click has it where it meets a closed pipe itself."""


def report_errors(run: Callable[[], object], *, debug: Callable[[], bool]) -> int:
    """Run a command line and return its exit code; an ``int`` that it returns is that code."""
    try:
        with missing_extras():
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
        _give_up_stdout()
        return _CANNOT_WRITE
    except OSError as error:
        if not _is_of_writing(error):
            raise
        _give_up_stdout()
        _report(f"the result cannot be written to the standard output: {error.strerror}")
        return _CANNOT_WRITE
    return result if isinstance(result, int) else 0


def _is_of_writing(error: OSError) -> bool:
    """Whether it was raised where a result is written, on a full disk for example, and not by what was done for it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    places = (click.echo.__code__, report_errors.__code__)
    return trace is not None and trace.tb_frame.f_code in places


def _give_up_stdout() -> None:
    """Throw away what is still buffered and cannot be written; the interpreter would complain of it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _report(message: str) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {one_line(message)}", err=True)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        setting = _near_setting(error.option_name, context.command)
        if setting is not None:
            return f"No such option {error.option_name!r} (settings are written KEY=VALUE: did you mean {setting}=…?)"
    hint = f" (see '{context.command_path} --help')" if context else ""
    return error.format_message().rstrip(".") + hint


def _near_setting(option: str, command: click.Command) -> str | None:
    """Of a command that takes settings, the one that an unknown option may be meant for."""
    if not any("KEY=VALUE" in (parameter.metavar or "") for parameter in command.params):
        return None
    from agentrl.config import Config
    from agentrl.config.validation import near_key

    return near_key(Config, re.sub(r"[-.]", "_", option.lstrip("-")))
