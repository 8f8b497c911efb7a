"""Starting an agent's process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from agentrl.environ import WORKER
from agentrl.environments.environment import environments
from agentrl.errors import PluginError, near_matches
from agentrl.rollout.subproc.contract import AgentProcess

__all__ = ["launch", "usable_interpreter"]


def launch(process: AgentProcess, mark: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start ``python -m agentrl.worker`` and return it with our end of its connection.

    It leads a session and a process group of its own, its output is one pipe, and ``mark`` stands in its
    environment. Raises ``PluginError`` where there is no such interpreter, or no process can be started.
    """
    python = usable_interpreter(process.python)
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            started = subprocess.Popen(  # noqa: S603  (the interpreter is the user's choice)
                # -P: what lies in the current folder takes nobody's place, be it called `math.py` or `agents.py`.
                [python, "-P", "-m", "agentrl.worker", "--fd", str(theirs.fileno())],
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**process.env, WORKER: mark},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise PluginError(
                f"{python} could not be started: {error.strerror or error}",
                fix="set agent.python to a Python interpreter",
            ) from error
    return started, ours


def usable_interpreter(python: Path) -> Path:
    """``python`` as it can be started. Raises ``PluginError`` that says why it cannot."""
    path = Path(os.path.expanduser(python))
    if path.is_dir():
        inside = path / "bin" / "python"
        fix = f"set agent.python={inside}" if inside.exists() else "set agent.python to the interpreter itself"
        raise PluginError(f"agent.python={python} is a folder, not an interpreter", fix=fix)
    if not path.exists():
        raise PluginError(f"agent.python={python} does not exist", fix=_instead_of(path))
    if shutil.which(path.absolute()) is None:
        raise PluginError(f"agent.python={python} is not executable", fix=f"chmod +x {path}, or choose an interpreter")
    return path


def _instead_of(path: Path) -> str:
    """What may have been meant by an interpreter that does not exist: a command, or one of the environments."""
    if path.is_absolute():
        return "set agent.python to the path of a Python interpreter"
    if found := shutil.which(str(path)):
        return f"set agent.python={found}"
    name = str(path)
    known = [environment.name for environment in environments()]
    if os.sep not in name and known:
        return f"environments: {near_matches(name, known)}; or set agent.python to the path of a Python interpreter"
    return "set agent.python to the path of a Python interpreter, or to an environment that agentrl env create makes"
