"""Other interpreters and programs: finding a Python that can make environments, and running a program to its end."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agentrl.errors import ConfigError, PluginError, one_line
from agentrl.plugins.entries import CORE, OLDEST_PYTHON

__all__ = ["Interpreter", "child_environment", "find_interpreter", "run_shown"]

_ANSWER_S = 60
"""Seconds that an interpreter may take to say what it is."""
_GRACE_S = 5.0
"""Seconds that an interrupted program may take to end by itself."""
_OF_PYTHON = ("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_QUESTION = """
import json, sys
from importlib.util import find_spec
print(json.dumps([sys.executable, sys.version_info[:3], [m for m in ("venv", "ensurepip") if not find_spec(m)]]))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that can make virtual environments."""

    path: str
    version: str


def find_interpreter(asked: str | None, environ: dict[str, str]) -> Interpreter:
    """The interpreter that ``asked`` means, a path or a command such as ``python3.12``; for ``None`` this one.

    It is run with the variables ``environ``. Raises ``ConfigError`` where it is no Python, or is too old, and
    ``PluginError`` where it lacks what making virtual environments takes.
    """
    command = sys.executable if asked is None else shutil.which(os.path.expanduser(asked))
    if command is None:
        raise ConfigError(f"there is no interpreter {asked!r}", fix="name a path or a command such as python3.12")
    path, version, missing = _answer(command, environ)
    text = ".".join(map(str, version))
    if tuple(version[:2]) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise ConfigError(
            f"{CORE} needs Python {oldest} or later and {command} is {text}", fix="name another with --python"
        )
    if missing:
        package = f"python{version[0]}.{version[1]}-venv"
        raise PluginError(
            f"{path} has no module {' and no module '.join(missing)}, so it can make no environment",
            fix=f"apt install {package} on Debian or Ubuntu, or name another interpreter with --python",
        )
    return Interpreter(path, text)


def _answer(command: str, environ: dict[str, str]) -> tuple[str, list[int], list[str]]:
    try:
        done = subprocess.run(  # noqa: S603
            [command, "-I", "-c", _QUESTION],
            env=child_environment(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=True,
        )
        path, version, missing = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = one_line(getattr(error, "stderr", None) or error)[-200:]
        raise ConfigError(f"{command} is no Python that runs: {said}", fix="name another with --python") from error
    return path, version, missing


def child_environment(environ: Mapping[str, str], **more: str) -> dict[str, str]:
    """``environ`` without the variables that would let this interpreter's packages into another; ``more`` is added."""
    return {**{name: value for name, value in environ.items() if name not in _OF_PYTHON}, **more}


def run_shown(
    command: Sequence[str], environ: Mapping[str, str], log: Path, deadline: float, show: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run ``command`` and return its exit code and its lines, each passed to ``show`` and appended to ``log``.

    Its standard output and its standard error are read as one. Raises ``TimeoutError`` when ``time.monotonic()``
    reaches ``deadline``. However this function is left, the program and its children have ended.
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
    """The lines of ``stream`` as they come; a line that is overwritten, as a progress bar is, in its last state."""
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
    """End what is left of the program's group. It is interrupted first, for then pip removes its temporary files."""
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
