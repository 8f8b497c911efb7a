"""Supervision: a process that a run has started ends with the run, and leaves nothing behind, however either ends.

Such a process is two: one that does the work, and its supervisor, which nothing that the work does can hold up. The
supervisor is the process that was started, the leader of its session. It forks before anything else is imported, and
then

- reaps the orphans that the work leaves (on Linux they become its children), so that neither zombies nor strangers
  gather among the children of the working process;
- ends that process once whoever holds the other end of its socket is gone, also where the work never lets Python's
  other threads run;
- ends everything that is left when that process is no more, also what has made itself a session of its own, and
  then ends as it did: with its exit status, or by its signal.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["ending_of", "supervise"]

_GRACE_S = 2.0
"""How long the working process may take to notice by itself that nobody holds the other end any more."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def ending_of(code: int) -> str:
    """How a process with the return code ``code`` of ``subprocess`` ended, to complete "the process …"."""
    if code >= 0:
        return f"ended with exit code {code} and no answer"
    hint = ", as where memory runs out" if -code == signal.SIGKILL else ""
    return f"was ended by {_signal_name(-code)}{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def supervise(fd: int) -> None:
    """Fork: the child returns and does the work; the caller stays behind as its supervisor and ends with it.

    The child is ended once nobody holds the other end of the socket ``fd`` any more.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    if worker := os.fork():
        _Supervisor(fd, worker).stay()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)


class _Supervisor:
    def __init__(self, fd: int, worker: int) -> None:
        self._worker = worker
        self._status: int | None = None
        self._gone: float | None = None
        """When the other end was found to be closed."""
        self._signals, self._waker = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._signals, select.POLLIN)
        self._poll.register(fd, getattr(select, "POLLRDHUP", 0))

    def stay(self) -> NoReturn:
        self._wake_on_signals()
        self._reap()
        while self._status is None:
            self._watch()
            self._reap()
        for child in _children():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if self._gone is not None and os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        _end_with(self._status)

    def _wake_on_signals(self) -> None:
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._terminate)

    def _watch(self) -> None:
        """Wait for a child's end or the other side's; past the grace that the latter gives, end the worker."""
        ready = self._poll.poll(None if self._gone is None else _GRACE_S * 1000)
        for fd, _ in ready:
            if fd == self._signals:
                os.read(fd, 4096)
            else:
                self._gone = time.monotonic()
                self._poll.unregister(fd)
        if self._gone is not None and time.monotonic() > self._gone + _GRACE_S:
            os.kill(self._worker, signal.SIGKILL)

    def _reap(self) -> None:
        """Take the exit status of every child that has ended."""
        while self._status is None:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                break
            if child == self._worker:
                self._status = status

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        os.kill(self._worker, number)


def _children() -> Iterator[int]:
    """The processes that are this one's children, until there are none: those that a child leaves follow it."""
    while found := [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _parent(entry) == os.getpid()]:
        yield from found


def _parent(process: Path) -> int | None:
    try:
        # The name, in brackets, may hold anything.
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return None


def _end_with(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # The worker has left a core file if there is to be one.
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _ignore(number: int, frame: FrameType | None) -> None:
    """Handled by waking up; a signal that is ignored outright would be so in the worker's children too."""


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
