"""Killing processes with all that they have started, and noticing that one has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psutil

from agentrl.environ import WORKER

__all__ = ["Reaper", "exit_of"]

_ROUNDS = 10
_ROUND_S = 1.0
_PAUSE_S = 0.01


def exit_of(process: subprocess.Popen[bytes]) -> asyncio.Future[None]:
    """A future that is done once ``process`` has ended.

    The process is not reaped where the platform allows that, so that its id is not given to another process.

    A thread waits, because asyncio's watchers of children depend on the platform and on the main thread.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):  # Somebody else has reaped it.
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            else:
                process.wait()
        with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
            loop.call_soon_threadsafe(_set, ended)

    threading.Thread(target=wait, name=f"agentrl-exit-{process.pid}", daemon=True).start()
    return ended


def _set(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


class Reaper:
    """Kills and reaps processes, one after another, in a thread of its own.

    A process may leave others behind: children, members of its process group, and those that have left both but
    still carry its mark in their environment. All of them are killed with it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="agentrl-reaper")
        self._unburied: dict[subprocess.Popen[bytes], str] = {}
        """The processes that nobody has buried yet, and their marks."""
        self._marks: set[str] = set()

    def adopt(self, process: subprocess.Popen[bytes], mark: str) -> None:
        """Take over a process that was just started with ``mark``: it is buried when this closes, at the latest."""
        self._unburied[process] = mark

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Begin to kill ``process`` and its descendants; may be called at any time."""
        if process in self._unburied:
            self._thread.submit(_kill, process)

    async def bury(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what a process that has ended left behind, and reap it."""
        if (buried := self._begin_to_bury(process)) is not None:
            await asyncio.shield(asyncio.wrap_future(buried))  # What has begun is not cancelled with who waits for it.

    def close(self) -> None:
        """Kill and bury what is left, as where those that waited for its end were cancelled; then end the thread."""
        left = list(self._unburied)
        for process in left:
            self._thread.submit(_kill, process)
        for process in left:
            self._begin_to_bury(process)
        self._thread.shutdown()

    def _begin_to_bury(self, process: subprocess.Popen[bytes]) -> Future[None] | None:
        if (mark := self._unburied.pop(process, None)) is None:
            return None
        self._marks.add(mark)
        return self._thread.submit(self._bury, process)

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        _kill_group(process.pid)
        # One look through all processes serves every one that has ended by now.
        marks, self._marks = self._marks, set()
        if marks:
            _kill_marked(marks)
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return  # It has been reaped: its id may be another's.
    below = _descendants(process.pid)
    _kill_all(below)
    # Its supervisor ends what is left below it, reaps it and ends by itself; unless the agent has seen to that too.
    if not below or not _ends(process.pid):
        _kill_group(process.pid)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:  # It has just ended.
        return []


def _ends(pid: int) -> bool:
    """Wait up to a second for the end of a process, without reaping it; returns whether it has ended."""
    for _ in range(int(_ROUND_S / _PAUSE_S)):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(_PAUSE_S)
                continue
        return True
    return False


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # Nobody is left in it, or only the dead.
        os.killpg(group, signal.SIGKILL)


def _kill_marked(marks: set[str]) -> None:
    """Kill the processes that carry one of ``marks``, repeatedly, since they may start others meanwhile."""
    for _ in range(_ROUNDS):
        found = list(_marked(marks))
        if not found:
            return
        _kill_all(found)
        psutil.wait_procs(found, timeout=_ROUND_S)


def _marked(marks: set[str]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # Another user's, or gone.
            if process.environ().get(WORKER) in marks:
                yield process


def _kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
