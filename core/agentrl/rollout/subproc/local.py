"""Worker processes on this machine: each with a socket pair for what it says, and a pipe for what it prints."""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import replace

from agentrl.environ import WORKER
from agentrl.errors import PluginError
from agentrl.rollout.subproc.interpreter import AgentLaunch, diagnose, usable_interpreter
from agentrl.rollout.subproc.reaper import Reaper, exit_of

__all__ = ["LocalCarrier", "LocalProcess"]


class LocalCarrier:
    """Starts worker processes here; see ``Carrier``."""

    def __init__(self, spec: AgentLaunch) -> None:
        self._spec = spec
        self._reaper = Reaper()

    async def launch(self, env: Mapping[str, str]) -> LocalProcess:
        """Start a process. Raises ``PluginError`` where there is no such interpreter or none can be started."""
        return LocalProcess(replace(self._spec, env={**self._spec.env, **env}), self._reaper)

    def close(self) -> None:
        """Kill and reap what has not been buried, and end the thread that does so."""
        self._reaper.close()


class LocalProcess:
    """A process on this machine; see ``StartedProcess``."""

    lost: str | None = None

    def __init__(self, spec: AgentLaunch, reaper: Reaper) -> None:
        self._spec = spec
        self._reaper = reaper
        mark = secrets.token_hex(8)
        self._process, self._socket = _launch(spec, mark)
        reaper.adopt(self._process, mark)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        self.exit: asyncio.Future[None] = exit_of(self._process)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def place(self) -> str:
        """The id of the process, in words."""
        return f"process {self._process.pid}"

    @property
    def returncode(self) -> int:
        """Its exit status, or minus the number of the signal that ended it; 0 before it is buried."""
        return self._process.returncode or 0

    async def connect(self, channel: asyncio.Protocol, output: asyncio.Protocol) -> None:
        """Connect the event loop to both ends."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: channel, sock=self._socket)
        await loop.connect_read_pipe(lambda: output, self._pipe)

    def kill(self) -> None:
        """Begin to kill it and all that it has started."""
        self._reaper.kill(self._process)

    async def bury(self) -> None:
        """Kill what it has left behind, and reap it."""
        await self._reaper.bury(self._process)

    def close(self) -> None:
        """Close our ends of the socket pair and of the pipe."""
        self._socket.close()
        self._pipe.close()

    async def diagnose(self, how: str) -> PluginError:
        """What is wrong with the interpreter or the agent's module."""
        return await diagnose(self._spec, how)


def _launch(process: AgentLaunch, mark: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start ``python -m agentrl.worker`` and return it with our end of the socket pair.

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
