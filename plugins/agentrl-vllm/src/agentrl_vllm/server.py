"""A vLLM server that agentrl starts: its port, its log, its start, and its end without a trace."""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agentrl import BackendError, run_in_thread
from agentrl_vllm.client import Client, ServerFailed, one_line
from agentrl_vllm.command import Command
from agentrl_vllm.process import SupervisedProcess

__all__ = ["LOOPBACK", "BuildCommand", "Server", "ServerLog", "free_port", "is_free", "phase_of"]

LOOPBACK = "127.0.0.1"


def free_port(address: str = LOOPBACK) -> int:
    """Returns a port of ``address``, one of this machine's, that is free now. It may be taken before it is used."""
    with socket.socket(_family(address)) as bound:
        bound.bind((address, 0))
        port: int = bound.getsockname()[1]
        return port


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def is_free(port: int, address: str = LOOPBACK) -> bool:
    """Returns whether a server could listen on ``port`` of ``address`` now."""
    with socket.socket(_family(address)) as attempt:
        # As servers do: connections of an earlier one that are not quite forgotten are in nobody's way.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((address, port))
        except OSError:
            return False
    return True


_PHASES = (
    (r"EngineArgs|version \d|non-default args|Resolved architecture", "reading its configuration"),
    (r"Initializing a V1 LLM engine", "starting its engine"),
    (r"Starting to load model", "loading the weights"),
    (r"Loading weights took|Model loading took", "measuring its memory"),
    (r"Dynamo bytecode|[Cc]ompiling a graph", "compiling the model"),
    (r"Capturing CUDA graphs|Graph capturing", "capturing CUDA graphs"),
    (r"KV cache size", "warming up"),
    (r"Starting vLLM server", "opening its port"),
)
_FIRST = "importing vLLM"
_TAIL = 65536
_LINES = 6
_CHARACTERS = 300
_NOISE = re.compile(r"warnings\.warn|Warning: |\bWARNING\b|resource_tracker|^\s|^$|Route: |\] {2,}|\] *File ")
_PREFIX = re.compile(
    r"^(?:\((?:APIServer|EngineCore\w*|Worker\w*|VllmWorker\S*)[^)]*\) ?)?(?:ERROR \S+ \S+ \[\S+\] ?)?"
)
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*|^.*: error: .*")
_SEE_BELOW = re.compile(r"\d+ validation errors? for ")
_SEE_ABOVE = re.compile(r"See root cause above|See stack trace for root cause")


def phase_of(text: str) -> str:
    """Returns what a starting server whose log is ``text`` is doing, as the end of a sentence."""
    phase = _FIRST
    for pattern, name in _PHASES:
        if re.search(pattern, text):
            phase = name
    return phase


class ServerLog:
    """The log of one server: what is added to a file after this object was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = path.stat().st_size if path.exists() else 0

    @property
    def phase(self) -> str:
        """What the starting server is doing, as the end of a sentence."""
        return phase_of(self._read())

    @property
    def failure(self) -> str | None:
        """The log's line that says why the server failed, if there is one: the error that points to no other."""
        lines = [_PREFIX.sub("", line) for line in self._read().splitlines()]
        errors = [at for at, line in enumerate(lines) if _ERROR.match(line) and not _SEE_ABOVE.search(line)]
        if not errors:
            return None
        # What pydantic finds wrong stands below the line that says how much it is.
        told = lines[errors[-1] : errors[-1] + (2 if _SEE_BELOW.search(lines[errors[-1]]) else 1)]
        return one_line(" ".join(told))[:_CHARACTERS]

    def last_lines(self) -> str:
        """Returns the last lines of the log, joined to one; empty where there are none."""
        lines = [line for line in self._read().splitlines() if not _NOISE.search(line)]
        return " | ".join(one_line(line)[:_CHARACTERS] for line in lines[-_LINES:])

    def _read(self) -> str:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._begin, size - _TAIL))
                return file.read().decode("utf-8", "replace")
        except OSError:  # Removed meanwhile, as by who clears up: a server goes on without.
            return ""


BuildCommand = Callable[[int, Path], Command]
"""A function from a port and a scratch folder to the command that serves on that port."""

_PAUSE_S = 0.2
_ANSWER_S = 5.0
_REMIND_S = 30.0
_ATTEMPTS = 3
_TAKEN = "Address already in use"


class Server:
    """A server process. ``start`` and ``stop`` belong to one event loop; all else may be used from anywhere."""

    ours = True

    def __init__(
        self,
        build: BuildCommand,
        *,
        name: str,
        log: Path,
        port: int = 0,
        address: str = LOOPBACK,
        key: str | None = None,
        shared: Path | None = None,
        start_timeout: float = 570,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``name`` is its name in messages; ``port`` is 0 for any free port; ``start_timeout`` is in seconds.

        ``address`` is where it listens, and ``key`` what it asks for, if anything.

        ``shared`` is the folder of weights, which is removed where this process is killed. ``say`` is called with what
        the start waits for.
        """
        self.name = name
        self.model = ""
        """The server's name of the model, which no other server has."""
        self._build = build
        self._asked_port = port
        self._port = port
        self._address = address
        self._key = key
        self._shared = shared
        self._start_timeout = start_timeout
        self._say = say
        self._log_path = log
        self._log: ServerLog | None = None
        self._process: SupervisedProcess | None = None

    @property
    def url(self) -> str:
        """Its base URL; set when it starts."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"http://{host}:{self._port}"

    @property
    def alive(self) -> bool:
        """Whether its process runs, whether or not it answers."""
        return self._process is not None and self._process.alive

    @property
    def ending(self) -> str:
        """How its process ended, as the end of a sentence."""
        return "was not started" if self._process is None else self._process.ending

    async def place(self, folder: Path) -> str:
        """Returns the path under which it sees ``folder``."""
        return str(folder)

    def last_lines(self) -> str:
        """Returns its last lines of output, joined to one; empty where there are none."""
        return "" if self._log is None else self._log.last_lines()

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises ``BackendError``, with its last lines of output, where it ends or is not ready in time, and where the
        port that was asked for is taken. No process is left then.
        """
        for attempt in range(_ATTEMPTS):
            self._port = self._asked_port or free_port(self._address)
            if self._asked_port and not is_free(self._asked_port, self._address):
                raise self._taken()
            try:
                await self._start()
            except _PortTaken as error:
                if self._asked_port or attempt == _ATTEMPTS - 1:
                    raise self._taken() from error
            else:
                return

    async def stop(self) -> None:
        """End the process and everything that it has started. Safe to call twice."""
        if self._process is not None:
            await asyncio.shield(run_in_thread(self._process.kill))

    def kill(self) -> None:
        """End the process as ``stop`` does, in the calling thread, which waits for a fraction of a second."""
        if self._process is not None:
            self._process.kill()

    async def _start(self) -> None:
        self._log = ServerLog(self._log_path)
        # The port may be somebody else's by the time that it listens: it is known by this.
        self.model = f"policy-{secrets.token_hex(4)}"
        self._process = SupervisedProcess(self._command, self._log_path, self._shared)
        try:
            async with asyncio.timeout(self._start_timeout):
                await self._ready(self._log)
        except TimeoutError as error:
            late = self._failure(f"was not ready after {self._start_timeout:g} s, still {self._log.phase}")
            await self.stop()
            late.fix = f"raise inference.backend.start_timeout; {late.fix}"
            raise late from error
        except BaseException:
            self.kill()
            raise

    def _command(self, scratch: Path) -> Command:
        command = self._build(self._port, scratch)
        return replace(command, argv=(*command.argv, "--served-model-name", self.model))

    async def _ready(self, log: ServerLog) -> None:
        begun = said_at = time.monotonic()
        said = ""
        async with Client(_ANSWER_S, self._key) as client:
            while not await self._answers(client):
                if not self.alive:
                    raise self._died(log)
                now = time.monotonic()
                if (phase := log.phase) != said or now - said_at > _REMIND_S:
                    self._say(f"{self.name} is {phase}" + (f" ({now - begun:.0f} s)" if said else ""))
                    said, said_at = phase, now
                await asyncio.sleep(_PAUSE_S)
        self._say(f"{self.name} is ready at {self.url} after {time.monotonic() - begun:.0f} s")

    async def _answers(self, client: Client) -> bool:
        """Whether it is healthy. Raises ``_PortTaken`` where another server answers on its port."""
        try:
            answer = await client.get(self.url, "/v1/models")
            if self.model not in (model["id"] for model in answer["data"]):
                raise TypeError("it has other models")
            await client.get(self.url, "/health")
        except ServerFailed:
            return False
        except (BackendError, TypeError, KeyError) as error:
            raise _PortTaken(f"port {self._port} is taken: another server answers there") from error
        return True

    def _died(self, log: ServerLog) -> BackendError:
        # The words may be of another port, such as those that its workers talk over.
        is_said = _TAKEN in log.last_lines() or _TAKEN in (log.failure or "")
        if is_said and not is_free(self._port, self._address):
            return _PortTaken(f"port {self._port} is taken")
        return self._failure(f"{self.ending} while {log.phase}")

    def _failure(self, what: str) -> BackendError:
        because = f": {failure}" if self._log and (failure := self._log.failure) else ""
        last = self.last_lines()
        said = f"; it printed last: {last}" if last else "; it printed nothing"
        return BackendError(f"{self.name} {what}{because}{said}", fix=f"all of its output is in {self._log_path}")

    def _taken(self) -> BackendError:
        if not self._asked_port:
            return BackendError(f"{self.name} found no free port in {_ATTEMPTS} attempts")
        return BackendError(
            f"{self.name} cannot listen on port {self._asked_port}: it is taken",
            fix="set inference.backend.port to another, or to 0 for any that is free",
        )


class _PortTaken(BackendError):
    """Another process listens on the server's port."""
