"""The supervisor: the process between a run and a server, which leaves nothing of either behind, however they end.

Run as ``python -I -S supervisor.py SCRATCH SHARED COMMAND…``, it needs nothing but the standard library. It leads the
session in which it runs the command, and ends all that has come of it, and removes the folder ``SCRATCH``, once

- the command's process has ended, by itself or by a signal,
- its standard input is closed, or its parent is another one: whoever started it is gone,
- it gets SIGTERM.

The folder ``SHARED`` goes with it if nobody holds the lock on the file ``lock`` in it: whoever had it is gone. An
empty name is for none.

Its exit status is the command's, 128 and more for a signal. A second process, the guard, is of another session and
ends this one where even the supervisor is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NamedTuple, NoReturn

MARK = "AGENTRL_WORKER"
"""The environment variable of all processes of a server; its value is the server's own."""

_LOOK_S = 1.0
_PAUSE_S = 0.01
_BURIAL_S = 10.0
_TRACKERS_S = 2.0
"""Seconds that Python's resource trackers may take to remove the shared memory of processes that have ended."""

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def main(scratch: str, shared: str, command: Sequence[str]) -> NoReturn:
    parent = os.getppid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    lifeline, promise = os.pipe()
    guard = _guard(lifeline, promise, scratch, shared)
    signals = _Signals()
    server = _start(command)
    status = None
    while status is None and not signals.asked and not _is_alone(parent, signals):
        status = _status_of(server)
    _end(lambda: (process for process in _members(os.getpid()) if process.pid != guard))
    shutil.rmtree(scratch, ignore_errors=True)
    _remove_unused(shared)
    if sys.platform == "linux":
        with contextlib.suppress(BrokenPipeError, ChildProcessError):  # The guard has been killed.
            os.write(promise, b"done")
            os.waitpid(guard, 0)
    os._exit(0 if status is None else _exit_code(status))


class _Signals:
    """Signal handlers that wake ``select`` up and remember whether the end was asked for."""

    def __init__(self) -> None:
        self.asked = False
        self.woken, waker = os.pipe()
        for end in (self.woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _is_alone(parent: int, signals: _Signals) -> bool:
    """Wait until something happens. Returns whether the process that started this one is gone."""
    ready, _, _ = select.select([0, signals.woken], [], [], _LOOK_S)
    if signals.woken in ready:
        os.read(signals.woken, 4096)
    return os.getppid() != parent or (0 in ready and not os.read(0, 4096))


def _start(command: Sequence[str]) -> int:
    supervisor = os.getpid()
    if server := os.fork():
        return server
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvp(command[0], list(command))  # noqa: S606
    except OSError as error:
        print(f"{command[0]} could not be started: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _guard(lifeline: int, promise: int, scratch: str, shared: str) -> int:
    """Start the guard, which ends this session if ``promise`` is closed before it hears that the session has ended."""
    session = os.getpid()
    if guard := os.fork():
        os.close(lifeline)
        return guard
    os.setsid()
    for fd in (0, 1, 2, promise):
        os.close(fd)
    _prctl(_PR_SET_NAME, b"vllm-guard")
    if not os.read(lifeline, 4):
        _end(lambda: _members(session))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)
        _remove_unused(shared)
    os._exit(0)


def _remove_unused(shared: str) -> None:
    """Remove the folder ``shared`` if nobody uses it: a lock ends with the process that held it."""
    if not shared:
        return
    with contextlib.suppress(OSError), open(os.path.join(shared, "lock"), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(shared, ignore_errors=True)


def _status_of(server: int) -> int | None:
    """The server's wait status once it has ended; its orphans are reaped meanwhile."""
    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
        if ended[0] == server:
            return ended[1]
    return None


def _end(members: Callable[[], Iterator[_Process]]) -> None:
    """Kill ``members`` until there are none; resource trackers last, which free the shared memory of the others."""
    started = time.monotonic()
    while (found := list(members())) and time.monotonic() - started < _BURIAL_S:
        for process in found:
            if not process.is_tracker or time.monotonic() - started > _TRACKERS_S:
                _kill(process.pid)
        time.sleep(_PAUSE_S)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class _Process(NamedTuple):
    pid: int
    is_tracker: bool


def _members(session: int) -> Iterator[_Process]:
    """The processes of ``session``, this process's children, and all with its mark; none without ``/proc``."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()] if sys.platform == "linux" else []
    for pid in pids:
        # The name, in brackets, may hold anything.
        status = _read(pid, "stat").rpartition(b")")[2].split()
        if pid == os.getpid() or not status or status[0] in b"ZX":
            continue
        is_near = int(status[3]) == session or int(status[1]) == os.getpid()
        if is_near or mark in _read(pid, "environ").split(b"\0"):
            yield _Process(pid, b"multiprocessing.resource_tracker" in _read(pid, "cmdline"))


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:  # It has just ended, or is another user's.
        return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def _prctl(option: int, value: int | bytes) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
