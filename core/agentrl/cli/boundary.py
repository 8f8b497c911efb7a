"""How a command begins and ends: usable streams, one line on stderr for an error, an exit code, and no thread left.

A traceback is shown where the user asks for it, and for errors that are bugs of agentrl.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NoReturn

import click

from agentrl.errors import AgentRLError, one_line
from agentrl.extras import missing_extras

__all__ = ["INTERRUPTED", "RESUMABLE", "code_of", "interruptible", "leave", "open_streams", "report_errors"]

INTERRUPTED = 130
RESUMABLE = 75
"""The exit code of a run that SIGTERM has stopped, as a machine does that is about to be taken away: it can be resumed.
In ``sysexits.h`` the number means that a command should be tried again later."""
_FAILED = 1
_CANNOT_WRITE = 1
"""The exit code that click uses when it meets a closed pipe itself."""

_SURE = 0.8
"""How similar an unknown option must be to a known one before a setting is thought of, from 0 to 1."""

_GRACE_S = 2.0
"""Seconds for which the process waits at its end for threads that other code has left."""


def code_of(outcome: str, signal: str | None) -> int:
    """The exit code of a run that ended with ``outcome``, interrupted by ``signal``, as its summary has them."""
    if outcome == "completed":
        return 0
    if outcome == "interrupted":
        return RESUMABLE if signal == "SIGTERM" else INTERRUPTED
    return _FAILED


def report_errors(run: Callable[[], object], *, debug: Callable[[], bool]) -> int:
    """Run a command line and return its exit code; an ``int`` that it returns is that code."""
    try:
        with missing_extras(), interruptible():
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
        with contextlib.suppress(OSError):  # The terminal may be what is gone.
            click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return _CANNOT_WRITE
    except OSError as error:
        if not _is_of_writing(error):
            raise
        is_hung_up = _is_hung_up(error)
        _give_up_stdout()
        if is_hung_up:
            return INTERRUPTED
        _report(f"the result cannot be written to the standard output: {error.strerror}")
        return _CANNOT_WRITE
    return result if isinstance(result, int) else 0


def _is_of_writing(error: OSError) -> bool:
    """Whether it was raised where a result is written, on a full disk for example, and not by what was done for it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    writers = (click.echo.__code__, report_errors.__code__)
    return trace is not None and trace.tb_frame.f_code in writers


def _is_hung_up(error: OSError) -> bool:
    """Whether what standard output was is no terminal any more: a closed one fails at everything."""
    if error.errno != errno.EIO:
        return False
    try:
        os.tcgetpgrp(sys.stdout.fileno())
    except OSError as other:
        return other.errno == errno.EIO
    return False


def leave(code: int) -> NoReturn:
    """End the process with ``code``, within seconds, whatever threads others have left in it.

    Python would wait for them. Exit handlers are run in any case.
    """
    is_over = threading.Event()
    for wait_s, end in ((_GRACE_S, _run_exit_handlers), (2 * _GRACE_S, _nothing)):
        # Made now, because an interpreter that is on its way out starts no thread.
        threading.Thread(target=_leave, args=(code, wait_s, is_over, end), daemon=True).start()
    atexit.register(is_over.set)  # Called before the others, once no thread is waited for any more.
    sys.exit(code)


def _leave(code: int, wait_s: float, is_over: threading.Event, end: Callable[[], None]) -> None:
    if is_over.wait(wait_s):
        return
    end()
    os._exit(code)


def _run_exit_handlers() -> None:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _nothing() -> None:
    """Do nothing, because the exit handlers themselves did not end."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP end things as Ctrl-C does, so that nothing stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that is ignored stays so: `nohup` means it.
    taken = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _interrupt)
    os.register_at_fork(after_in_child=partial(_end_in_child, taken))
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _end_in_child(taken: Sequence[signal.Signals]) -> None:
    """Restore the signals' default in a forked copy of this process, such as one of a pool."""
    for number in taken:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _give_up_stdout() -> None:
    """Discard buffered output that cannot be written, about which the interpreter would complain at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _report(message: str) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {one_line(message)}", err=True)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        is_option = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1, cutoff=_SURE)
        setting = None if is_option else _near_setting(error.option_name, context.command)
        if setting is not None:
            return f"No such option {error.option_name!r} (settings are written KEY=VALUE: did you mean {setting}=…?)"
    hint = f" (see '{context.command_path} --help')" if context else ""
    return error.format_message().rstrip(".") + hint


def _near_setting(option: str, command: click.Command) -> str | None:
    """The key that an unknown option may be meant for, where the command takes settings; else ``None``."""
    if not any("KEY=VALUE" in (parameter.metavar or "") for parameter in command.params):
        return None
    from agentrl.config import Config
    from agentrl.config.errors import near_key

    return near_key(Config, re.sub(r"[-.]", "_", option.lstrip("-")))


def open_streams() -> None:
    """Open a standard stream that the caller has closed to the null device.

    Otherwise the next file that is opened would take its descriptor, and be written to.
    """
    for descriptor, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            os.set_inheritable(descriptor, True)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
