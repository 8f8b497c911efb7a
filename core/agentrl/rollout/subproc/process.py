"""One worker process from its start to its end: the connection to it, what it prints, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.errors import AgentRLError, PluginError
from agentrl.rollout.subproc.contract import StartedProcess
from agentrl.rollout.subproc.output import Output, WorkerLog
from agentrl.supervision import ending_of
from agentrl.worker.protocol import LONGEST, Message, decode, encode

__all__ = [
    "DEFAULT_LIMITS",
    "KILLED_WITHIN_S",
    "PRINTED",
    "Ended",
    "KillReason",
    "WorkerLimits",
    "WorkerProcess",
    "how_it_ended",
    "with_last_lines",
]

MIB = 2**20

KILLED_WITHIN_S = 10.0
"""How long a killed process may take to be gone."""

_LAST_WORDS_S = 1.0
"""How long what a dead process has sent and printed may take to arrive."""

_REPLIES = ("hello", "loaded", "refused")

PRINTED = "; it printed last: "
"""What stands between how a process ended and the last lines of its output."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How long a worker may take for things, in seconds, and how much it may print, in bytes."""

    start_s: float = 120.0
    """From starting a process to an imported agent: a framework takes 10 seconds to import on a busy machine."""
    grace_s: float = 5.0
    """How long an agent may take to end once it is cancelled."""
    stop_s: float = 4.0
    """How long a process may take to end once it is told to stop."""
    printed: int = 64 * MIB
    """Most bytes that a process may print while none of its episodes begins or ends."""
    log: int = 8 * MIB
    """Bytes after which a log file is set aside; the one before it is dropped."""


DEFAULT_LIMITS = WorkerLimits()


@dataclass(frozen=True, slots=True)
class KillReason:
    """Why a process is killed."""

    reason: str
    """What the process did; completes the sentence "the agent's process …"."""
    culprit: int | None = None
    """The episode that is to blame, where that is known."""
    error: AgentRLError | None = None
    """The error with which that episode fails."""


class Ended(Exception):
    """Raised by ``WorkerProcess.ask`` where the process ended instead of answering."""


class WorkerProcess:
    """A worker's process, the connection to it and its output; all three end together."""

    def __init__(self, started: StartedProcess, *, log: WorkerLog | None, limits: WorkerLimits) -> None:
        """``started`` is the process, of which nobody has heard anything yet."""
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[str] = loop.create_future()
        """Done once the process and all that it started have ended; the result says how, as ``how_it_ended`` does."""
        self.output = Output(log, limits.printed, lambda: self.kill(KillReason(_flooded(limits.printed))))
        self.receive: Callable[[Message], None] = _refuse
        """Called with every message that is no answer to ``ask``. Raises ``LookupError``, ``TypeError`` or
        ``ValueError`` for one that it does not understand."""
        self._log = log
        self._kill_reason: KillReason | None = None
        self._reply: asyncio.Future[Message] | None = None
        self._channel = WorkerConnection(self._take, lambda what: self.kill(KillReason(what)), self._lost)
        self._started = started
        self._life = loop.create_task(self._live())
        if log is not None:
            log.open(started.place)

    async def connect(self) -> None:
        """Connect the event loop to the process; before this nothing can be sent or received."""
        await self._started.connect(self._channel, self.output)

    @property
    def alive(self) -> bool:
        """Whether it can be sent messages and is expected to answer them."""
        return self._kill_reason is None and not self._started.exit.done() and self._channel.open

    @property
    def kill_reason(self) -> KillReason | None:
        """Why it was killed; ``None`` where it was not."""
        return self._kill_reason

    @property
    def lost(self) -> str | None:
        """How the machine that it ran on was lost; ``None`` where it was not, or the process was killed before."""
        return self._started.lost if self._kill_reason is None else None

    @property
    def unread(self) -> bool:
        """Whether it ended before it had read everything that was sent."""
        return self._channel.unread

    def send(self, line: bytes) -> None:
        """Send an encoded message."""
        self._channel.send(line)

    async def ask(self, message: Mapping[str, Any]) -> Message:
        """Send ``message`` and return the answer to it. Raises ``Ended``, and whatever ``encode`` does."""
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._reply = reply
        self.send(encode(message))
        waited_for: set[asyncio.Future[Any]] = {reply, self.gone}
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            return reply.result()
        raise Ended(self.gone.result())

    def kill(self, kill_reason: KillReason) -> None:
        """Begin to kill it and all that it started; of several calls the first reason counts."""
        if self._kill_reason is None and not self._started.exit.done():
            self._kill_reason = kill_reason
            self._started.kill()

    async def stop(self, seconds: float) -> None:
        """Tell it to stop, kill it where it has not ended after ``seconds``, and wait for its end."""
        self.send(encode({"type": "stop"}))
        try:
            if not await self.ends_within(seconds):
                self.kill(KillReason("did not stop when it was told to"))
                await self.ends_within(KILLED_WITHIN_S)
        except asyncio.CancelledError:
            self.kill(KillReason("was in the way of an interruption"))
            raise

    async def diagnose(self, how: str) -> PluginError:
        """Why it has not loaded its agent, where it ended in the way that ``how`` says."""
        return await self._started.diagnose(how)

    async def ends_within(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for its end, and return whether it has ended."""
        await asyncio.wait({self.gone}, timeout=seconds)
        return self.gone.done()

    def _take(self, message: Message) -> None:
        if message["type"] not in _REPLIES:
            self.receive(message)
        elif self._reply is None or self._reply.done():
            raise ValueError("an answer to nothing")
        else:
            self._reply.set_result(message)

    def _lost(self) -> None:
        """The connection is lost: the process is ending, or is killed where it goes on without a connection."""
        kill_reason = KillReason("closed its connection to the rollout")
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self.kill, kill_reason)

    async def _live(self) -> None:
        try:
            await self._started.exit
            await self._started.bury()
            await asyncio.wait({self._channel.closed, self.output.closed}, timeout=_LAST_WORDS_S)
            await self._channel.close()
            await self.output.close()
        finally:  # Also where the event loop ends before the process does.
            self._started.close()
            if self._log is not None:
                self._log.close()
        self.gone.set_result(self._end())

    def _end(self) -> str:
        last_lines = self.output.last_lines()
        if self.lost is not None:
            return with_last_lines(self.lost, last_lines)
        return how_it_ended(self._started.returncode, self._kill_reason, last_lines)


def _refuse(message: Message) -> None:
    raise ValueError("nothing was asked yet")


def _flooded(limit: int) -> str:
    return f"printed more than {limit / 2**20:g} MiB during one episode"


class WorkerConnection(asyncio.Protocol):
    """The rollout's end of the socket pair to a worker.

    It calls ``receive`` for every message, ``fail`` once with a reason for anything else, and ``lost`` at the end.

    ``receive`` may raise ``LookupError``, ``TypeError`` or ``ValueError`` for a message that lacks something.
    """

    def __init__(
        self, receive: Callable[[Message], None], fail: Callable[[str], None], lost: Callable[[], None]
    ) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unread = False
        """Whether the other side ended before it had read everything that was sent."""
        self._receive = receive
        self._fail = fail
        self._lost = lost
        self._parts: list[bytes] = []
        self._size = 0
        self._failed = False
        self._transport: asyncio.Transport | None = None

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, line: bytes) -> None:
        """Send an encoded message; it is dropped where the other side has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(line)

    async def close(self) -> None:
        """Close the connection at once, without sending what is still buffered."""
        if self._transport is not None:
            self._transport.abort()
            await self.closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``: messages can be sent from now on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``: ``data`` may hold any part of any number of messages."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            line, self._parts, self._size = b"".join((*self._parts, end)), [], 0
            self._take(line)
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > LONGEST:
            self._refuse(f"a message of more than {LONGEST} bytes")

    def _take(self, line: bytes) -> None:
        if self._failed:
            return
        try:
            self._receive(decode(line))
        except (LookupError, TypeError, ValueError, RecursionError):
            self._refuse(f"{line[:80]!r}")

    def _refuse(self, what: str) -> None:
        self._parts, self._size = [], 0
        if not self._failed:
            self._failed = True
            self._fail(f"sent {what}, which is no message of the worker protocol")

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``: either side has closed the connection."""
        self.unread = error is not None
        self.closed.set_result(None)
        self._lost()


def how_it_ended(code: int, kill_reason: KillReason | None, last_lines: str) -> str:
    """How a process with the return code ``code`` ended, to complete the sentence "the agent's process …"."""
    return with_last_lines(f"{kill_reason.reason}, and was killed" if kill_reason else ending_of(code), last_lines)


def with_last_lines(how: str, last_lines: str) -> str:
    """``how`` a process ended, and what it printed last."""
    return f"{how}{PRINTED}{last_lines}" if last_lines else how
