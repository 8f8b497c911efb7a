"""Processes of ``agentrl`` that start warm: forked from one that has imported what training needs.

A fresh interpreter spends five seconds of CPU on importing torch and transformers before it does what a test is
about. ``WarmInterpreter`` pays that once; each process that it starts is a real one, with its own signals, streams,
working directory, environment and exit code. So are the hosts of a run, such as the ranks of its learner, where a test
has them start warm as well (``WarmHosts``).

Run as a script, this file is the interpreter that is forked. It listens on a Unix socket. A request carries the
process's streams as file descriptors; the answers are its id and, when it has ended, its exit code.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from unittest import mock

IMPORTED = (
    *(
        "transformers",
        "transformers.models.qwen3.modeling_qwen3",
        "renderers",
        "renderers.default",
        "renderers.parsers",
    ),
    *(
        "openai.resources.chat.chat",
        "openai_harmony",
        "uvicorn.config",
        "uvicorn.protocols.http.httptools_impl",
        "uvloop",
    ),
    *("agentrl.cli.root", "agentrl.doctor", "agentrl.training.trainer", "agentrl.plugins.hooks"),
    *("agentrl.hosting.local", "agentrl.hosting.holding", "agentrl.training.ranked_learner"),
    "agentrl.tokens.selection",
    *("agentrl.algorithms.presets", "agentrl.algorithms.objectives", "agentrl.algorithms.corrections"),
    *("agentrl.inference.engine.backend", "agentrl.rollout.inline", "agentrl.tasks.arithmetic"),
    *("agentrl_agents.math", "agentrl_agents.models", "agentrl_agents.tasks"),
)
"""What a run of the bundled agent on the bundled model imports by and by."""


def prepare() -> None:
    """Load what every run loads, and what costs most of all the first time: the renderer of the bundled model."""
    for name in IMPORTED:
        __import__(name)
    sys.modules["agentrl.tokens.selection"].load_renderer(sys.modules["agentrl_agents.models"].TINY)


class WarmInterpreter:
    """Starts processes of ``agentrl``, or of other Python code, in an interpreter that is warm already."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "warm")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())], pass_fds=[listener.fileno()], stdin=subprocess.PIPE
            )

    def start(
        self,
        *arguments: str,
        cwd: Path,
        before: str = "",
        script: Path | None = None,
        module: str = "agentrl",
        hosts: Path | None = None,
        environ: Mapping[str, str] | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> WarmProcess:
        """Start ``agentrl`` with ``arguments`` in the folder ``cwd``, or another module or a file in its place.

        ``before`` is code that runs first. With ``hosts``, hosts that it starts are warm too, and that file tells
        their ids. Streams are as those of ``subprocess.Popen``, pipes of text.
        """
        request = {
            "argv": [str(script or module), *arguments],
            "cwd": str(cwd),
            "before": before,
            "script": None if script is None else str(script),
            "module": module,
            "hosts": None if hosts is None else [self.address, str(hosts)],
            "environ": dict(os.environ if environ is None else environ),
        }
        return WarmProcess(self.address, request, {0: stdin, 1: stdout, 2: stderr})

    @contextlib.contextmanager
    def hosting(self, told: Path) -> Iterator[None]:
        """Within it, hosts that this process starts are warm; the file ``told`` tells their ids."""
        from agentrl.hosting import local

        with mock.patch.object(local, "subprocess", WarmHosts(self.address, told)):
            yield

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class WarmProcess:
    """A process that a ``WarmInterpreter`` has started, in the shape of ``subprocess.Popen``."""

    def __init__(
        self,
        address: str,
        request: dict[str, Any],
        streams: dict[int, int | IO[Any] | None],
        passed: Sequence[int] = (),
    ) -> None:
        """``passed`` are descriptors that it has too: ``{0}`` in an argument is its number of the first of them."""
        self.returncode: int | None = None
        self._pipes: dict[int, IO[str]] = {}
        given, ours = [], []
        for number, stream in streams.items():
            if stream == subprocess.PIPE:
                reading, writing = os.pipe()
                ours.append(writing)
                self._pipes[number] = open(reading, encoding="utf-8")  # noqa: SIM115
                given.append(writing)
            else:
                given.append(number if stream is None else stream if isinstance(stream, int) else stream.fileno())
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(address)
        socket.send_fds(self._answers, [json.dumps(request).encode() + b"\n"], [*given, *passed])
        for writing in ours:
            os.close(writing)
        self._lines = self._answers.makefile()
        self.pid = int(self._lines.readline())
        self.stdout, self.stderr = self._pipes.get(1), self._pipes.get(2)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._answers.close()
        return self.returncode

    def wait(self, timeout: float = 600.0) -> int:
        ends = time.monotonic() + timeout
        while self.returncode is None:
            if not select.select([self._answers], [], [], max(ends - time.monotonic(), 0))[0]:
                raise subprocess.TimeoutExpired("agentrl", timeout)
            self.poll()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """What is left of its output, when it has ended; closes the pipes."""
        texts: dict[int, str] = {1: "", 2: ""}
        readers = [
            threading.Thread(target=lambda number=number, pipe=pipe: texts.update({number: pipe.read()}), daemon=True)
            for number, pipe in self._pipes.items()
            if not pipe.closed
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        for pipe in self._pipes.values():
            pipe.close()
        return texts[1], texts[2]


class WarmHosts:
    """In the place of ``subprocess`` in ``agentrl.hosting.local``: starts the processes of hosts warm.

    Only the interpreter's start differs from a host that a run starts itself, and whose child it is: the process that
    forks here answers for it.
    """

    DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT

    def __init__(self, address: str, told: Path) -> None:
        """Ask the interpreter at ``address``, and append to the file ``told`` the id of every supervisor, a line."""
        self._address = address
        self._told = told

    def Popen(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: int,
        env: Mapping[str, str],
        pass_fds: tuple[int],
        start_new_session: bool,
    ) -> WarmProcess:
        python, isolated, module, name, option, fd = command
        assert (python, isolated, module, option) == (sys.executable, "-P", "-m", "--fd")
        assert (stdin, stderr, pass_fds) == (self.DEVNULL, self.STDOUT, (int(fd),))
        request = {
            "argv": [name, option, "{0}"],
            "cwd": os.getcwd(),
            "before": "import os; os.setsid()" if start_new_session else "",
            "script": None,
            "module": name,
            "hosts": None,
            "environ": dict(env),
        }
        with open(os.devnull, "rb") as nothing:
            process = WarmProcess(self._address, request, {0: nothing, 1: stdout, 2: stdout}, pass_fds)
        with self._told.open("a") as told:
            told.write(f"{process.pid}\n")
        return process


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork a process for each request, until stdin is closed. Returns the request in the process that is to do it."""
    prepare()
    gc.collect()
    gc.freeze()  # Collections in the processes leave the pages of this one shared.
    assert threading.active_count() == 1, threading.enumerate()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        answers, _ = listener.accept()
        if not os.fork():
            listener.close()
            message, descriptors, _, _ = socket.recv_fds(answers, 1 << 20, 8)
            streams, passed = descriptors[:3], descriptors[3:]
            while not message.endswith(b"\n"):
                message += answers.recv(1 << 20)
            if not (pid := os.fork()):
                answers.close()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                for stream in streams:
                    os.close(stream)
                request = json.loads(message)
                if passed:
                    request["argv"] = [each.format(*passed) for each in request["argv"]]
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            with contextlib.suppress(OSError):  # Whoever asked may be gone.
                answers.sendall(b"%d\n" % pid)
                answers.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            os._exit(0)
        answers.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def become(request: dict[str, Any]) -> None:
    """Do in this process what an interpreter would that was started as ``request`` says."""
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # As the interpreter chooses when it starts.
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        sys.modules["torch"].set_num_threads(int(threads))  # It has read the variable already.
    if request["hosts"] is not None:
        address, told = request["hosts"]
        sys.modules["agentrl.hosting.local"].subprocess = WarmHosts(address, Path(told))
    sys.argv = request["argv"]
    sys.path[0] = request["cwd"] if request["script"] is None else str(Path(request["script"]).parent)
    exec(request["before"], {})
    if request["script"] is None:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
