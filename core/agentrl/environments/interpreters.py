"""The interpreter that an environment is made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from agentrl.environments.processes import child_environment
from agentrl.errors import ConfigError, PluginError, one_line
from agentrl.plugins.entries import CORE, OLDEST_PYTHON

__all__ = ["Interpreter", "find_interpreter"]

_DEADLINE_S = 60
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
    """The interpreter called ``asked``, a path or a command such as ``python3.12``; by default this one.

    Raises ``ConfigError`` where it is no Python or too old, and ``PluginError`` where it cannot make environments.
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
            timeout=_DEADLINE_S,
            check=True,
        )
        path, version, missing = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = one_line(getattr(error, "stderr", None) or error)[-200:]
        raise ConfigError(f"{command} is no Python that runs: {said}", fix="name another with --python") from error
    return path, version, missing
