"""``python -m agentrl.worker --fd N``: a process that runs an agent for a rollout in another one.

A worker is two processes: one that runs agents' code, and its supervisor, which nothing that an agent does can hold
up. The supervisor is the process that the rollout starts, the leader of its session. It forks before anything else is
imported, and then

- reaps the orphans that agents leave (on Linux they become its children), so that neither zombies nor strangers
  gather among the children of the agents' process;
- ends that process once the rollout is gone, also where agent code never lets Python's other threads run;
- ends everything that is left when that process is no more, also what has made itself a session of its own, and
  then ends as it did: with its exit status, or by its signal.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn, cast

_GRACE_S = 2.0
"""How long the agents' process may take to notice by itself that the rollout is gone."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.worker",
        description="Runs an agent for a rollout in another process: with rollout.mode=subproc, agentrl starts it.",
    )
    parser.add_argument("--fd", type=int, required=True, help="descriptor of its end of a connected pair of sockets")
    fd = parser.parse_args().fd

    try:
        os.fstat(fd)
    except OSError as error:
        parser.error(f"--fd {fd}: {error.strerror}")
    _supervise(fd)
    _take_over_stdio()

    from agentrl.worker.lifecycle import Channel, serve

    try:
        channel = Channel(fd)
    except OSError as error:
        parser.error(f"--fd {fd}: {error.strerror}")
    return serve(channel)


def _take_over_stdio() -> None:
    """Make standard input empty, and write out what an agent prints at the end of each line."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (sys.stdout, sys.stderr):
        cast(TextIOWrapper, stream).reconfigure(line_buffering=True, errors="backslashreplace")
    del sys.argv[1:]  # An agent's module may read the command line.


def _supervise(fd: int) -> None:
    """Fork: the child returns and runs agents; the caller stays behind as its supervisor and ends with it.

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
        """When the rollout was found to be gone."""
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
        """Wait for a child's end or the rollout's; past the grace that the latter gives, end the worker."""
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


if __name__ == "__main__":
    sys.exit(main())
