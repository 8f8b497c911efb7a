"""A supervised process: everything that it has started ends with it, and it ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agentrl import BackendError
from agentrl_vllm.command import Command
from agentrl_vllm.supervisor import MARK

__all__ = ["SupervisedProcess"]

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_BURIAL_S = 15.0
_PAUSE_S = 0.02
_LONGEST_FOLDER = 60
"""Characters of the temporary folder's path: sockets are made below it, and their paths must be short."""


class SupervisedProcess:
    """A command that runs in a session of its own and prints to a file. May be used from any thread."""

    def __init__(self, build: Callable[[Path], Command], log: Path, shared: Path | None = None) -> None:
        """Start the command that ``build`` returns for a scratch folder, which is removed when the process ends.

        ``shared`` is a folder of this process. It is removed as well where this process is killed, and nobody holds a
        lock on the file ``lock`` in it.

        Raises ``BackendError`` where no process can be started or ``log`` cannot be written.
        """
        self._lock = threading.Lock()
        self._scratch = _scratch_folder()
        try:
            self._process = _launch(build(self._scratch), self._scratch, shared, log)
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        """The supervisor's process id, and the id of the session that it leads."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the command still runs."""
        return self._process.poll() is None

    @property
    def ending(self) -> str:
        """How the command ended, as the end of a sentence."""
        code = self._process.poll()
        if code is None:
            return "is running"
        if code < 0:
            return f"lost its supervisor to {_signal_name(-code)}"
        if code > 128:
            hint = ", as where memory runs out" if code - 128 == signal.SIGKILL else ""
            return f"was ended by {_signal_name(code - 128)}{hint}"
        return f"ended with exit code {code}"

    def kill(self) -> None:
        """End the command and everything that it has started, and wait until they are gone. Safe to call again."""
        with self._lock:
            self._process.terminate()
            try:
                self._process.wait(_BURIAL_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._await_guard()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _await_guard(self) -> None:
        """Wait for the guard to end the session, where the supervisor itself was killed."""
        deadline = time.monotonic() + _BURIAL_S
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, 0)
                time.sleep(_PAUSE_S)


def _scratch_folder() -> Path:
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108  (mkdtemp makes it ours alone)
    return Path(tempfile.mkdtemp(prefix="agentrl-vllm-", dir=parent))


def _launch(command: Command, scratch: Path, shared: Path | None, log: Path) -> subprocess.Popen[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603  (the interpreter is the user's choice)
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(scratch), str(shared or ""), *command.argv],
                # Never written to: it is closed when we are no more.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**command.env, MARK: secrets.token_hex(8)},
                cwd=scratch,
                start_new_session=True,
            )
    except OSError as error:
        raise BackendError(f"no server can be started: {error.strerror or error}: {error.filename or log}") from error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
