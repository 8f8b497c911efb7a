"""The rollout's end of a worker: the real process, over a real socket pair, with a deadline on every wait."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentrl.worker.protocol import PROTOCOL, Message, decode, encode

DEADLINE_S = 60.0

PROCESS_ENDPOINT = {"base_url": "http://127.0.0.1:9/process/v1", "api_key": "process"}


class Rollout:
    """Starts a worker and speaks with it; leaving kills it and what it has started."""

    def __init__(self, python: Path = Path(sys.executable), *, env: Mapping[str, str] | None = None) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(DEADLINE_S)
        self._lines = self._socket.makefile("rb")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        with theirs:
            self.process = subprocess.Popen(
                [str(python), "-m", "agentrl.worker", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                env=None if env is None else dict(env),
            )

    def say(self, type: str, **fields: Any) -> None:
        """Send a message."""
        self.write(encode({"type": type, **fields}))

    def write(self, line: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(line)

    def hear(self) -> Message:
        """The next message of the worker."""
        line = self._lines.readline()
        assert line, f"the worker ended: {self.log()}"
        return decode(line)

    def has_unread(self) -> bool:
        """Whether the worker has sent something."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def greet(self) -> Message:
        """Say hello, and return the worker's."""
        self.say("hello", protocol=PROTOCOL, core="0")
        return self.hear()

    def load(
        self, agent: object, *, disabled: tuple[str, ...] = (), outcomes: tuple[str, ...] = (), **kwargs: object
    ) -> Message:
        """Greet, and have an agent loaded; ``loaded`` or ``refused``."""
        assert self.greet()["type"] == "hello"
        self.say(
            "load", agent=str(agent), kwargs=kwargs, disabled=disabled, outcomes=outcomes, endpoint=PROCESS_ENDPOINT
        )
        return self.hear()

    def begin(self, episode: int, data: object = None, *, base_url: str | None = None) -> None:
        """Begin an episode, whose connection has its number in it."""
        url = base_url or f"http://127.0.0.1:9/episode-{episode}/v1"
        connection = {"base_url": url, "api_key": f"key-{episode}", "model": "policy"}
        self.say("run", id=episode, data=data or {}, connection=connection)

    def run(self, data: object = None, *, episode: int = 1, base_url: str | None = None) -> Any:
        """Run an episode and return what its agent returned."""
        self.begin(episode, data, base_url=base_url)
        answer = self.hear()
        assert (answer["type"], answer["id"]) == ("done", episode), answer
        return answer["returned"]

    def failure(self, data: object = None, *, episode: int = 1) -> dict[str, Any]:
        """Run an episode that fails and return its error."""
        self.begin(episode, data)
        answer = self.hear()
        assert (answer["type"], answer["id"]) == ("failed", episode), answer
        error: dict[str, Any] = answer["error"]
        return error

    def close(self) -> None:
        """Be gone, as a rollout that is killed."""
        self._lines.close()
        self._socket.close()

    def exit_code(self) -> int:
        """Wait for the worker's end."""
        return self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        """Say stop and wait for the worker's end."""
        self.say("stop")
        return self.exit_code()

    def log(self) -> str:
        """What was printed so far."""
        return os.pread(self._log.fileno(), 2**20, 0).decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)
        self.close()
        self._log.close()


def is_over(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` becomes true before the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    """Whether a process does not run any more; one that nobody has reaped is gone too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True
