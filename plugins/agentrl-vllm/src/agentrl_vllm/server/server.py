"""One vLLM server that is ours: started, waited for, and ended without a trace."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agentrl import run_in_thread
from agentrl.errors import BackendError
from agentrl_vllm.client import Client
from agentrl_vllm.errors import ServerFailed
from agentrl_vllm.server.command import Command
from agentrl_vllm.server.log import ServerLog
from agentrl_vllm.server.ports import LOOPBACK, free_port, is_free
from agentrl_vllm.server.process import SupervisedProcess

__all__ = ["BuildCommand", "Server"]

BuildCommand = Callable[[int, Path], Command]
"""From a port and a folder for temporary files to the command that serves on that port."""

_PAUSE_S = 0.2
_ANSWER_S = 5.0
_REMIND_S = 30.0
_ATTEMPTS = 3
_TAKEN = "Address already in use"


class Server:
    """A server process of ours. ``start`` and ``stop`` belong to one event loop; all else may be used anywhere."""

    ours = True

    def __init__(
        self,
        build: BuildCommand,
        *,
        name: str,
        log: Path,
        port: int = 0,
        shared: Path | None = None,
        start_timeout: float = 570,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``name`` is how messages call it, and ``say`` is told what its start waits for; ``port`` 0 is any.

        ``shared`` is a folder that we share with it, which goes where we are killed.
        """
        self.name = name
        self.model = ""
        """What it calls the model, as no other server does."""
        self._build = build
        self._asked_port = port
        self._port = port
        self._shared = shared
        self._start_timeout = start_timeout
        self._say = say
        self._log_path = log
        self._log: ServerLog | None = None
        self._process: SupervisedProcess | None = None

    @property
    def url(self) -> str:
        """Its address, without a path; known once it starts."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def alive(self) -> bool:
        """Whether its process runs; not whether it answers."""
        return self._process is not None and self._process.alive

    @property
    def ending(self) -> str:
        """How its process ended, as the end of a sentence about it."""
        return "was not started" if self._process is None else self._process.ending

    def last_lines(self) -> str:
        """What it printed last, on one line; empty where it printed nothing."""
        return "" if self._log is None else self._log.last_lines()

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises ``BackendError`` with what it printed last where it ends, or is not ready in time, and where the port
        that was asked for is taken. However this fails, no process is left.
        """
        for attempt in range(_ATTEMPTS):
            self._port = self._asked_port or free_port()
            if self._asked_port and not is_free(self._asked_port):
                raise self._taken()
            try:
                await self._start()
            except _PortTaken as error:
                if self._asked_port or attempt == _ATTEMPTS - 1:
                    raise self._taken() from error
            else:
                return

    async def stop(self) -> None:
        """End it with all that it has started. Safe to call twice."""
        if self._process is not None:
            await asyncio.shield(run_in_thread(self._process.kill))

    def kill(self) -> None:
        """As ``stop``, but in the thread that calls, which waits for a fraction of a second."""
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
            late = self._failure(f"was not ready after {self._start_timeout:g} s, still {self._log.stage}")
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
        async with Client(_ANSWER_S) as client:
            while not await self._answers(client):
                if not self.alive:
                    raise self._died(log)
                now = time.monotonic()
                if (stage := log.stage) != said or now - said_at > _REMIND_S:
                    self._say(f"{self.name} is {stage}" + (f" ({now - begun:.0f} s)" if said else ""))
                    said, said_at = stage, now
                await asyncio.sleep(_PAUSE_S)
        self._say(f"{self.name} is ready at {self.url} after {time.monotonic() - begun:.0f} s")

    async def _answers(self, client: Client) -> bool:
        """Whether it is well. Raises ``_PortTaken`` where it is another server that answers."""
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
        is_said = _TAKEN in log.last_lines() or _TAKEN in (log.cause or "")
        if is_said and not is_free(self._port):
            return _PortTaken(f"port {self._port} is taken")
        return self._failure(f"{self.ending} while {log.stage}")

    def _failure(self, what: str) -> BackendError:
        because = f": {cause}" if self._log and (cause := self._log.cause) else ""
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
    """Somebody else listens there already."""
