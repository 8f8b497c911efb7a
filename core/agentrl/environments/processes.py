"""Running a program whose output is shown and kept, until a deadline."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

__all__ = ["child_environment", "run_shown"]

_GRACE_S = 5.0
_OF_PYTHON = ("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def child_environment(environ: Mapping[str, str], **more: str) -> dict[str, str]:
    """``environ`` without what would let this interpreter's packages into another one."""
    return {**{name: value for name, value in environ.items() if name not in _OF_PYTHON}, **more}


def run_shown(
    command: Sequence[str], environ: Mapping[str, str], log: Path, deadline: float, show: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run ``command`` and return its exit code and its lines, each passed to ``show`` and appended to ``log``.

    Raises ``TimeoutError`` when ``time.monotonic()`` reaches ``deadline``. However this is left, the program
    and its children have ended.
    """
    lines: list[str] = []
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(  # noqa: S603
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches it through us alone, and it can be killed with its children.
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for line in _lines(process.stdout, deadline):
                lines.append(line)
                file.write(f"{line}\n")
                file.flush()
                show(line)
            return process.wait(max(0.0, deadline - time.monotonic())), lines
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        finally:
            _end(process)


def _lines(stream: IO[bytes], deadline: float) -> Iterator[str]:
    """The lines of ``stream`` as they come, of a line that is drawn again and again its last state."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(stream.fileno(), 1 << 16)
            *whole, rest = (rest + chunk).split(b"\n")
            yield from map(_text, whole)
            if not chunk:
                if rest:
                    yield _text(rest)
                return
    raise TimeoutError


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the program's group; an interrupt first, after which pip removes its temporary files."""
    try:
        if process.poll() is None:
            _signal(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
