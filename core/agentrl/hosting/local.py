"""Hosts on this machine: each a process of its own, which ends with this one however that ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import IO, Any

from agentrl.errors import AgentRLError, ConfigError, HostLostError, RunError, cannot_write, one_line, shortened
from agentrl.hosting.contract import HostSpec
from agentrl.hosting.holding import Answer, Begin, Call, Cancel, Made, Stop
from agentrl.hosting.wire import Wire
from agentrl.machine import usable_processors
from agentrl.supervision import ending_of

__all__ = ["LocalHost", "LocalHosts"]

_KILLED_S = 5.0
"""Seconds that a killed process, and what it has started, may take to be gone."""
_LAST_WORDS_S = 0.5
"""Seconds that what an ended process has sent may take to be read."""
_LOOK_S = 0.25
"""Seconds between two looks whether a start is given up."""
_SILENT_S = 1.0
"""Seconds after which a process that has closed its connection and goes on is killed."""
_TAIL = 4096
_LINES = 4
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_OOM = Path("/sys/fs/cgroup/memory.events")


class LocalHosts:
    """Starts hosts on this machine: ``agentrl.hosting.contract.Hosts``."""

    address = "127.0.0.1"
    elsewhere = False

    def start(
        self,
        specs: Sequence[HostSpec],
        *,
        patience: float,
        together: bool = True,
        given_up: threading.Event | None = None,
    ) -> Sequence[LocalHost]:
        """Start a host for each of ``specs``, which share the processors; see the contract.

        Raises ``ConfigError`` where they need more GPUs than there are. Memory is not counted.
        """
        if needed := sum(spec.gpus for spec in specs):
            _check_gpus(needed)
        started: list[LocalHost] = []
        until = time.monotonic() + patience
        try:
            for spec in specs:
                started.append(LocalHost(spec, _threads(len(specs))))
            for host in started:
                host.wait_until_made(until, patience, given_up)
        except BaseException:
            for host in started:
                host.kill()
            for host in started:
                host.stop(0.0)
            raise
        return started


class LocalHost:
    """A process on this machine that holds an object: ``agentrl.hosting.contract.Host``."""

    address = "127.0.0.1"

    def __init__(self, spec: HostSpec, threads: Mapping[str, str]) -> None:
        """Start it. ``threads`` are the variables that say how many threads it computes with.

        Raises ``RunError`` where no process can be started or its log cannot be opened.
        """
        self.name = spec.name
        self.node = f"this machine ({platform.node()})"
        self._printed = _Printed(spec.log)
        self._kills_before = _memory_kills()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._made: Future[int] = Future()
        self._pid: int | None = None
        """The process that holds the object, whose supervisor is the one that was started."""
        self._lost: HostLostError | None = None
        self._stopping = False
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - This interpreter.
                    # -P, because the path of modules is sent: it is that of this process.
                    [sys.executable, "-P", "-m", "agentrl.hosting", "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._printed.file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **threads, **spec.env},
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                self._printed.close()
                raise RunError(f"{spec.name} could not be started: {error.strerror or error}") from error
        self._wire = Wire(ours)
        self._gone, self._heard = threading.Event(), threading.Event()
        threading.Thread(target=self._listen, name=f"agentrl-{self.name}", daemon=True).start()
        threading.Thread(target=self._await_end, name=f"agentrl-end-{self.name}", daemon=True).start()
        # A path of its own for what lies in the current folder, which is this process's too.
        path = [os.getcwd() if entry == "" else entry for entry in sys.path]
        try:
            self._wire.send(Begin(spec.name, spec.target, dict(spec.arguments), path))
        except OSError:
            pass  # It has ended already, and ``wait_until_made`` says how.
        except BaseException:
            self.stop(0.0)
            raise

    def wait_until_made(self, until: float, patience: float, given_up: threading.Event | None) -> None:
        """Return once its object is made, by ``time.monotonic()`` of ``until``; raises as ``Hosts.start`` does."""
        while not wait([self._made], max(0.0, min(_LOOK_S, until - time.monotonic()))).done:
            if given_up is not None and given_up.is_set():
                raise RunError(f"{self.name} was starting on {self.node} when that was given up")
            if time.monotonic() >= until:
                raise RunError(
                    f"waited {patience:g} s for {self.name} to start on {self.node}{self._printed.told()}",
                    fix="raise training.timeout, or see what the machine is busy with",
                )
        self._made.result()

    def ask(self, method: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``Host.ask``. Raises ``TypeError`` or ``PicklingError`` for an argument that cannot be sent."""
        asked: Future[Any] = Future()
        number = next(self._numbers)
        with self._lock:
            if self._lost is not None:
                asked.set_exception(self._lost)
                return asked
            self._asked[number] = asked
            try:
                self._wire.send(Call(number, method, args, kwargs))
            except OSError:
                return asked  # It is ending: whoever waits for its end answers.
            except BaseException:
                del self._asked[number]
                raise
        asked.add_done_callback(lambda done: self._cancel(number) if done.cancelled() else None)
        return asked

    def stop(self, patience: float) -> None:
        """See ``Host.stop``."""
        self._stopping = True
        if patience > 0 and not self._gone.is_set():
            # In a thread: a process that stands still reads nothing, and sending waits for it until it is killed.
            threading.Thread(target=self._tell_to_stop, name=f"agentrl-stop-{self.name}", daemon=True).start()
            self._gone.wait(patience)
        if not self._gone.is_set():
            self.kill()
        if not self._gone.wait(_KILLED_S):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._gone.wait(_KILLED_S)
        self._wire.close()

    def kill(self) -> None:
        """Begin to end it, and what it has started, at once; returns without waiting."""
        if self._pid is None:  # It has not told yet which of the two processes it is.
            self._wire.close()
        elif not self._gone.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGKILL)

    def _tell_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            self._wire.send(Stop())

    def _cancel(self, number: int) -> None:
        with self._lock:
            if self._asked.pop(number, None) is None:
                return
        with contextlib.suppress(OSError):
            self._wire.send(Cancel(number))

    def _listen(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                message = self._wire.receive()
                if isinstance(message, Answer):
                    self._take(message)
                elif isinstance(message, Made):
                    self._pid = message.process
                    _settle(self._made, message.process, message.error)
                del message  # With its arrays, which may be large.
        self._heard.set()
        if not self._gone.wait(_SILENT_S):  # It has closed its connection, or sent what nobody can read.
            self.kill()

    def _take(self, answer: Answer) -> None:
        with self._lock:
            asked = self._asked.pop(answer.number, None)
        if asked is not None:
            _settle(asked, answer.result, answer.error)

    def _await_end(self) -> None:
        code = self._process.wait()
        self._heard.wait(_LAST_WORDS_S)  # What it has answered before it ended counts.
        lost = HostLostError(self._how_lost(code), fix="see its log" if self._printed.path else None)
        with self._lock:
            self._lost = lost
            left = [*self._asked.values()]
            self._asked.clear()
        self._gone.set()
        for each in (self._made, *left):
            _settle(each, None, lost)
        self._printed.close()

    def _how_lost(self, code: int) -> str:
        if self._stopping:
            how = "was stopped"
        elif code == -signal.SIGKILL and _memory_kills() > self._kills_before:
            how = "was ended by SIGKILL, since memory has run out"
        else:
            how = ending_of(code)
        return f"{self.name} on {self.node} {how}{self._printed.told()}"


def _settle(future: Future[Any], result: object, error: AgentRLError | None) -> None:
    """Give ``future`` its result, unless it has one, or nobody waits for it any more."""
    with contextlib.suppress(Exception):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class _Printed:
    """Where a host prints to: a log, or a file without a name."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            if path is None:
                self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - It is open as long as this.
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.file = path.open("a+b")
            self._begin = self.file.seek(0, os.SEEK_END)
        except OSError as error:
            raise cannot_write(path or Path(tempfile.gettempdir()), error) from error
        self._lock = threading.Lock()
        self._last: str | None = None

    def told(self) -> str:
        """The last lines that were printed, to end a sentence with; empty where nothing was."""
        with self._lock:
            if self._last is not None:
                return self._last
            size = os.fstat(self.file.fileno()).st_size
            begin = max(self._begin, size - _TAIL)
            text = os.pread(self.file.fileno(), max(0, size - begin), begin).decode("utf-8", "replace")
        lines = [shortened(one_line(line)) for line in text.splitlines() if line.strip()][-_LINES:]
        where = f" ({self.path})" if self.path is not None else ""
        return f"; it printed last: {' | '.join(lines)}{where}" if lines else ""

    def close(self) -> None:
        """Close the file. ``told`` goes on to tell what was in it."""
        last = self.told()
        with self._lock:
            self._last = last
        self.file.close()


def _threads(hosts: int) -> dict[str, str]:
    """The variables by which so many hosts share the processors; none where there is one, which has them all."""
    if hosts < 2:
        return {}
    share = max(1, usable_processors() // hosts)
    told = {name: os.environ.get(name, "") for name in _THREADS}
    return {
        name: str(min(share, int(value)) if value.isdigit() and int(value) else share) for name, value in told.items()
    }


def _check_gpus(needed: float) -> None:
    import torch

    count = torch.cuda.device_count()
    if needed > count:
        raise ConfigError(
            f"{needed:g} GPUs are needed, and this machine has {count}",
            fix="start fewer processes, or set training.device=cpu",
            key="training.processes",
        )


def _memory_kills() -> int:
    """How often memory ran out in this container and the kernel killed a process; 0 where that is not told."""
    with contextlib.suppress(OSError, ValueError):
        for line in _OOM.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
