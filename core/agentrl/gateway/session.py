"""An episode's private view of the gateway, and what it recorded."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from agentrl.errors import AgentRLError, GatewayError
from agentrl.gateway.bodies import Bodies
from agentrl.gateway.contract import Call, SessionSettings
from agentrl.gateway.conversations import Conversations, MessageKey, Turn
from agentrl.gateway.credentials import Credentials
from agentrl.gateway.draws import Draws
from agentrl.gateway.interrupt import Interruptible
from agentrl.gateway.record import Plan, Record, turn_of
from agentrl.gateway.retries import Retries
from agentrl.tokens.contract import ROOT, TokenTree
from agentrl.tokens.template import Message

__all__ = ["Session", "closed_error"]

_TURNS = 10
"""More turns of a loop than a server needs to learn from its socket that a client has gone, and to say so."""
_HEARD_S = 2.0
"""Longest that a server may take for them."""


def closed_error(session: str) -> GatewayError:
    """What a call to a closed session is told."""
    return GatewayError(
        f"session {session} is closed: its episode has ended",
        status=404,
        code="session_closed",
        fix="make every call before run() returns",
    )


class Session:
    """A session of the gateway; use it from any thread.

    Attributes are the agent's connection (``base_url``, ``api_key``, ``http_client``), what was recorded
    (``tree``, ``calls``) and what was refused (``refusals``).
    """

    def __init__(
        self,
        settings: SessionSettings,
        credentials: Credentials,
        base_url: str,
        http_client: object,
        on_close: Callable[[Session], None],
    ) -> None:
        self.id = credentials.session
        """Public: it names the session in messages and logs, and opens nothing."""
        self.settings = settings
        self.credentials = credentials
        self.base_url = base_url
        self.api_key = credentials.key
        self.http_client = http_client
        """For ``AsyncOpenAI(http_client=…)``: reaches the gateway in process."""
        self.tree = TokenTree()
        self.retries = Retries()
        self.draws = Draws(settings.seed_key)
        self._lock = threading.Lock()
        self._on_close = on_close
        self._calls: dict[str, Call] = {}
        self._turns: dict[str, Turn] = {}
        self._bodies = Bodies()
        self._refusals: list[AgentRLError] = []
        self._conversations = Conversations()
        self._running: set[Interruptible] = set()
        self._waited = self._waiting_since = 0.0
        self._time = _time_here()
        self._servers: set[asyncio.AbstractEventLoop] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Session {self.id}: {len(self._calls)} calls, {'closed' if self._closed else 'open'}>"

    @property
    def calls(self) -> tuple[Call, ...]:
        """Completed calls, in the order in which they ended."""
        with self._lock:
            return tuple(self._calls.values())

    @property
    def refusals(self) -> tuple[AgentRLError, ...]:
        """The errors with which calls were answered, oldest first."""
        return tuple(self._refusals)

    @property
    def in_flight(self) -> int:
        """How many calls wait for the model."""
        return len(self._running)

    @property
    def waited(self) -> float:
        """Seconds in which at least one call waited for the model."""
        with self._lock:
            return self._waited + (self._time() - self._waiting_since if self._running else 0.0)

    def close(self) -> None:
        """End the session: calls in flight are refused, later ones too, and nothing more is recorded.

        Safe to call twice and from any thread.
        """
        with self._lock:
            running, self._running = self._running, set()
            self._closed = True
        for block in running:
            block.interrupt(closed_error(self.id))
        self._on_close(self)

    def served_by_this_loop(self) -> None:
        """A request of this session has come over a socket of the running loop."""
        self._servers.add(asyncio.get_running_loop())

    async def deliveries_known(self) -> None:
        """Return once it is known which answers were lost on clients that have gone by now.

        A server with a thread of its own hears of them a moment later than the agent goes on.
        """
        here = asyncio.get_running_loop()
        servers = [loop for loop in self._servers if loop is not here and loop.is_running()]
        if not servers:
            return
        await _turns(2)  # In which this loop closes the sockets that the agent has left to it.
        hearing = []
        for loop in servers:
            turns = _turns(_TURNS)
            try:
                hearing.append(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turns, loop)))
            except RuntimeError:  # The server has just ended.
                turns.close()
        if hearing:
            await asyncio.wait(hearing, timeout=_HEARD_S)

    @contextmanager
    def running(self, block: Interruptible) -> Iterator[None]:
        """Count a call as in flight. Raises ``GatewayError`` once the session is closed."""
        with self._lock:
            self._check_open()
            if not self._running:
                self._waiting_since = self._time()
            self._running.add(block)
        try:
            yield
        finally:
            with self._lock:
                if self._running == {block}:
                    self._waited += self._time() - self._waiting_since
                self._running.discard(block)

    def refuse(self, error: AgentRLError) -> None:
        """Remember an error that was raised and with which a call is being answered."""
        _forget_locals(error)
        self._refusals.append(error)

    @contextmanager
    def planned(self, tools: str, messages: Sequence[Message], keys: Sequence[MessageKey]) -> Iterator[Plan]:
        """What a request continues, and the ids recorded for that."""
        with self._lock:
            match = self._conversations.find(tools, messages, keys)
            turn = match.turn
            history = self.tree.path(turn.position) if turn and turn.position else []
            spelled = [self._conversations.spelled(key) for key in keys]
            if turn is not None:
                turn.continued += 1
        try:
            yield Plan(match, history, spelled)
        except BaseException:
            with self._lock:
                if turn is not None:
                    turn.continued -= 1
            raise

    def record(self, plan: Plan, record: Record) -> None:
        """Put a completed call into the tree. Raises ``GatewayError`` once the session is closed."""
        turn = plan.match.turn if record.extends else None
        start, known = (turn.position, len(plan.history)) if turn and turn.position else (ROOT, 0)
        with self._lock:
            self._check_open()
            end = self.tree.add_given(record.prompt_ids[known:], start)
            end = self.tree.add_sampled(record.completion_ids, record.sampled, end)
            self._keep(record.call, record.tools, record.keys, turn_of(record, end), record.spelled)

    def record_relayed(self, call: Call, tools: str, keys: Sequence[MessageKey], turn: Turn) -> None:
        """Remember a call that has no tokens here, and ``turn`` at the end of the messages with ``keys``.

        Raises ``GatewayError`` once the session is closed.
        """
        with self._lock:
            self._check_open()
            self._keep(call, tools, keys, turn)

    def _keep(
        self,
        call: Call,
        tools: str,
        keys: Sequence[MessageKey],
        turn: Turn,
        spelled: frozenset[str] = frozenset(),
    ) -> None:
        self._calls[call.id] = replace(call, request=self._bodies.keep(call.request))
        self._turns[call.id] = turn
        self._conversations.add(tools, keys, turn, spelled)

    def arrived(self, call: str, arrived: bool) -> None:
        """The answer to the call was lost on its way to the client; or it was lost, and is given again.

        Also once the session is closed.
        """
        with self._lock:
            lost = self._calls[call]
            if lost.delivered == arrived:
                return
            self._calls[call] = replace(lost, delivered=arrived)
            self._turns[call].delivered = arrived
            if lost.parent is not None:
                self._turns[lost.parent].continued += 1 if arrived else -1

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error(self.id)


def _time_here() -> Callable[[], float]:
    """The clock by which deadlines are kept here, which stands still in a pause of the process."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic


async def _turns(count: int) -> None:
    """So many turns of the running loop, in each of which it looks at its sockets."""
    for _ in range(count):
        await asyncio.sleep(0)


def _forget_locals(error: BaseException) -> None:
    """Keep of the tracebacks where they lead, and not the requests that the functions on the way were about."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next  # The first is whoever answers, and not at its end yet.
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and not any(link is other for other in chain):
        traceback.clear_frames(link.__traceback__)
        chain.append(link)
        link = link.__cause__ or link.__context__
