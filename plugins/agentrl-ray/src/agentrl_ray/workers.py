"""The object in a host that runs agents: worker processes on its node, whose bytes it passes on.

What the processes say is text of the worker protocol, which is read where episodes are, by the same checks as that of a
process there. Here it is nothing but bytes, and nothing of it is unpickled anywhere.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

from agentrl import AgentLaunch, LocalCarrier, LocalProcess, diagnose, find_environment, worker_environment

__all__ = ["AgentWorkers", "Event"]

_MOST = 1 << 20
"""Bytes that may wait to be fetched before processes are made to wait."""


class Event(NamedTuple):
    """What a process has said, printed or done."""

    number: int
    kind: Literal["said", "printed", "hung up", "silent", "ended"]
    """``hung up``: the connection is closed; ``silent``: nothing is printed any more."""
    data: bytes = b""
    code: int = 0
    """Of ``ended``: the exit status, negative for a signal. Of ``hung up``: 1 where it had not read everything."""


class AgentWorkers:
    """Starts worker processes on its node; their numbers are given by whoever asks."""

    def __init__(
        self,
        *,
        reference: str,
        python: str | None,
        environment: str | None,
        env: Sequence[str],
        disabled: Sequence[str],
    ) -> None:
        """``python`` is the interpreter and ``environment`` the name of the one of `agentrl env` that it belongs to,
        which is looked up on this node; without both it is this interpreter. ``env`` is of the form ``NAME=value``."""
        interpreter = _interpreter(python, environment)
        self._launch = AgentLaunch(
            reference=reference,
            kwargs={},
            python=interpreter,
            env=worker_environment(env, os.environ, python=interpreter),
            disabled=tuple(disabled),
        )
        self._carrier: LocalCarrier | None = None
        self._processes: dict[int, _Process] = {}
        self._events: list[Event] = []
        self._size = 0
        self._there = asyncio.Event()

    async def launch(self, number: int, env: Mapping[str, str]) -> str:
        """Start process ``number`` with more variables ``env``; returns which process it is, in words."""
        if self._carrier is None:
            self._carrier = LocalCarrier(self._launch)
        process = await self._carrier.launch(env)
        kept = _Process(number, process, self._take)
        self._processes[number] = kept
        await process.connect(kept.channel, kept.output)
        kept.life = asyncio.get_running_loop().create_task(self._live(kept))
        return process.place

    async def send(self, number: int, data: bytes) -> None:
        """Send ``data`` to a process; it is dropped where that has ended."""
        if (kept := self._processes.get(number)) is not None:
            kept.channel.send(data)

    async def kill(self, number: int) -> None:
        """Begin to kill a process and all that it has started."""
        if (kept := self._processes.get(number)) is not None:
            kept.process.kill()

    async def diagnose(self, how: str) -> tuple[str, str | None]:
        """Why a process has not loaded its agent: the message and the fix of the error."""
        error = await diagnose(self._launch, how)
        return error.message, error.fix

    async def events(self) -> list[Event]:
        """Wait until there is something to tell, and return all of it, in its order."""
        await self._there.wait()
        self._there.clear()
        events, self._events, self._size = self._events, [], 0
        for kept in self._processes.values():
            kept.go_on()
        return events

    async def close(self) -> None:
        """Kill all processes, and wait until they are gone."""
        lives = [kept.life for kept in self._processes.values() if kept.life is not None]
        for kept in self._processes.values():
            kept.process.kill()
        if lives:
            await asyncio.wait(lives)
        if self._carrier is not None:
            self._carrier.close()

    def _take(self, event: Event) -> None:
        self._events.append(event)
        self._size += len(event.data)
        self._there.set()
        if self._size > _MOST:
            for kept in self._processes.values():
                kept.wait()

    async def _live(self, kept: _Process) -> None:
        await kept.process.exit
        await kept.process.bury()
        kept.go_on()
        await kept.heard()
        kept.process.close()
        del self._processes[kept.number]
        self._take(Event(kept.number, "ended", code=kept.process.returncode))


_LAST_WORDS_S = 1.0
"""Seconds that what a dead process has sent and printed may take to arrive."""


class _Process:
    """A process, and what passes on what it says and prints."""

    def __init__(self, number: int, process: LocalProcess, take: Callable[[Event], None]) -> None:
        self.number = number
        self.process = process
        self.channel = _Relay(
            lambda data: take(Event(number, "said", data)), lambda cut: take(Event(number, "hung up", code=int(cut)))
        )
        self.output = _Relay(
            lambda data: take(Event(number, "printed", data)), lambda cut: take(Event(number, "silent"))
        )
        self.life: asyncio.Task[None] | None = None

    def wait(self) -> None:
        """Read no more of it for now."""
        self.channel.wait()
        self.output.wait()

    def go_on(self) -> None:
        """Read on."""
        self.channel.go_on()
        self.output.go_on()

    async def heard(self) -> None:
        """Wait for what it has said and printed before it ended, and close both."""
        await asyncio.wait({self.channel.closed, self.output.closed}, timeout=_LAST_WORDS_S)
        for relay in (self.channel, self.output):
            relay.close()
            await relay.closed


class _Relay(asyncio.Protocol):
    """Passes on what arrives, and says when nothing will any more."""

    def __init__(self, take: Callable[[bytes], None], ended: Callable[[bool], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take = take
        self._ended = ended
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._take(data)

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``: ``error`` says that not all of what was sent has been read."""
        self.closed.set_result(None)
        self._ended(error is not None)

    def send(self, data: bytes) -> None:
        """Write ``data``, unless the other side has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def wait(self) -> None:
        """Read no more for now."""
        if self._transport is not None and not self.closed.done():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read on."""
        if self._transport is not None and not self.closed.done():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close it at once. Safe to call twice."""
        if self._transport is None:
            if not self.closed.done():
                self.closed.set_result(None)
        elif not self.closed.done():
            self._transport.close()


def _interpreter(python: str | None, environment: str | None) -> Path:
    """The interpreter on this node; one that is not here is left to whoever starts it to report."""
    if python is None:
        return Path(sys.executable)
    if environment is not None and not Path(python).exists():
        return find_environment(environment).python
    return Path(os.path.expanduser(python))
