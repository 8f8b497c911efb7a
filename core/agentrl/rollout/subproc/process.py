"""One worker process from its start to its end, whatever is said to it in between."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.rollout.subproc.channel import Channel
from agentrl.rollout.subproc.contract import AgentProcess, Limits
from agentrl.rollout.subproc.fate import Sentence, how_it_ended
from agentrl.rollout.subproc.launch import launch
from agentrl.rollout.subproc.log import WorkerLog
from agentrl.rollout.subproc.output import Output
from agentrl.rollout.subproc.reaper import Reaper, exit_of
from agentrl.worker.protocol import Message, encode

__all__ = ["BURIAL_S", "Ended", "WorkerProcess"]

BURIAL_S = 10.0
"""How long a killed process may take to be gone."""

_LAST_WORDS_S = 1.0
"""How long what a dead process has sent and printed may take to arrive."""

_REPLIES = ("hello", "loaded", "refused")


class Ended(Exception):
    """The process ended instead of answering."""


class WorkerProcess:
    """A process, the connection to it and its output; all three end together."""

    def __init__(self, spec: AgentProcess, *, log: WorkerLog | None, limits: Limits, reaper: Reaper) -> None:
        """Start it. Raises ``PluginError``."""
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[str] = loop.create_future()
        """How the process ended, once it has, and nothing that it started is left."""
        self.output = Output(log, limits.printed, lambda: self.kill(Sentence(_flooded(limits.printed))))
        self.receive: Callable[[Message], None] = _refuse
        """Gets every message that is no answer to ``ask``. Raises ``LookupError``, ``TypeError`` or ``ValueError`` for
        one that makes no sense."""
        self._log = log
        self._reaper = reaper
        self._sentence: Sentence | None = None
        self._reply: asyncio.Future[Message] | None = None
        self._mark = secrets.token_hex(8)
        self._channel = Channel(self._take, lambda what: self.kill(Sentence(what)), self._lost)
        self._process, self._socket = launch(spec, self._mark)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        self._exit = exit_of(self._process)
        self._life = loop.create_task(self._live())
        if log is not None:
            log.open(f"process {self._process.pid}")

    async def connect(self) -> None:
        """Begin to listen; before this nothing can be sent."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._channel, sock=self._socket)
        await loop.connect_read_pipe(lambda: self.output, self._pipe)

    @property
    def alive(self) -> bool:
        """Whether something may be asked of it."""
        return self._sentence is None and not self._exit.done() and self._channel.open

    @property
    def sentence(self) -> Sentence | None:
        """Why it is killed, where it is."""
        return self._sentence

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

    def kill(self, sentence: Sentence) -> None:
        """Begin to end it; the first reason counts."""
        if self._sentence is None and not self._exit.done():
            self._sentence = sentence
            self._reaper.kill(self._process)

    async def stop(self, seconds: float) -> None:
        """Have it end by itself within ``seconds``, or kill it; its end is awaited."""
        self.send(encode({"type": "stop"}))
        try:
            if not await self.ends_within(seconds):
                self.kill(Sentence("did not stop when it was told to"))
                await self.ends_within(BURIAL_S)
        except asyncio.CancelledError:
            self.kill(Sentence("was in the way of an interruption"))
            raise

    async def ends_within(self, seconds: float) -> bool:
        """Whether it is gone before ``seconds`` have passed."""
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
        """A process that ends loses its connection first; one that goes on without is of no use."""
        sentence = Sentence("closed its connection to the rollout")
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self.kill, sentence)

    async def _live(self) -> None:
        try:
            await self._exit
            await self._reaper.bury(self._process, self._mark)
            await asyncio.wait({self._channel.closed, self.output.closed}, timeout=_LAST_WORDS_S)
            await self._channel.close()
            await self.output.close()
        finally:  # Also where the event loop ends before the process does.
            self._socket.close()
            self._pipe.close()
            if self._log is not None:
                self._log.close()
        self.gone.set_result(how_it_ended(self._process.returncode, self._sentence, self.output.last_lines()))


def _refuse(message: Message) -> None:
    raise ValueError("nothing was asked yet")


def _flooded(limit: int) -> str:
    return f"printed more than {limit / 2**20:g} MiB during one episode"
