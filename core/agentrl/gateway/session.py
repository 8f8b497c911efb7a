"""An episode's private view of the gateway, and what it recorded."""

from __future__ import annotations

import hashlib
import heapq
import threading
import time
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from agentrl.errors import AgentRLError, GatewayError
from agentrl.gateway.bodies import Bodies
from agentrl.gateway.contract import Call, SessionSettings
from agentrl.gateway.conversations import Conversations, Match, MessageKey, Turn
from agentrl.gateway.credentials import Credentials
from agentrl.gateway.interrupt import Interruptible
from agentrl.gateway.retries import Retries
from agentrl.tokens.template import Message
from agentrl.tokens.tree import ROOT, Position, Sampled, TokenTree

__all__ = ["Draw", "Plan", "Record", "Session", "closed_error"]


def closed_error(session: str) -> GatewayError:
    """What a call to a closed session is told."""
    return GatewayError(
        f"session {session} is closed: its episode has ended",
        status=404,
        code="session_closed",
        fix="make every call before run() returns",
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call's prompt follows from what its session recorded."""

    match: Match
    history: list[int]
    """The ids that the matched turn's conversation comes to; empty where there is none."""
    spelled: list[frozenset[str]]
    """For each message of the request, the control tokens that the policy spelled out when it wrote it."""

    @property
    def prompt(self) -> list[int]:
        """The part of ``history`` that the matched turn was given."""
        return self.history[: self.match.turn.prompt_tokens] if self.match.turn else []

    @property
    def completion(self) -> list[int]:
        """The part of ``history`` that the matched turn sampled and the agent saw."""
        return self.history[self.match.turn.prompt_tokens :] if self.match.turn else []


@dataclass(frozen=True, slots=True)
class Record:
    """A completed call, ready to be recorded."""

    call: Call
    sampled: Sampled
    prompt_ids: list[int]
    completion_ids: tuple[int, ...]
    shown: int | None
    """How many tokens of the completion the agent saw; ``None`` where that ends inside one."""
    extends: bool
    """Whether the prompt begins with the matched turn's own ids."""
    thinking: bool
    digest: bytes
    tools: str
    keys: Sequence[MessageKey]
    """Keys of the request's messages and of the completion's."""
    spelled: frozenset[str] = frozenset()
    """Control tokens that the completion spells out in others."""


class Draw(NamedTuple):
    """What a call's randomness derives from; the session's seed is in both digests."""

    request: bytes
    """Of the request: equal ones share it."""
    call: bytes
    """Of the request and its number among equal ones: each has its own."""


class _Numbers:
    """Numbers from 0, the smallest first; one that is given back is the next to be taken."""

    def __init__(self) -> None:
        self._given_back: list[int] = []
        self._fresh = 0

    def take(self) -> int:
        if self._given_back:
            return heapq.heappop(self._given_back)
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, number: int) -> None:
        heapq.heappush(self._given_back, number)


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
        self._lock = threading.Lock()
        self._on_close = on_close
        self._calls: dict[str, Call] = {}
        self._turns: dict[str, Turn] = {}
        self._bodies = Bodies()
        self._refusals: list[AgentRLError] = []
        self._conversations = Conversations()
        self._running: set[Interruptible] = set()
        self._waited = self._waiting_since = 0.0
        self._seed = hashlib.sha256(repr(settings.seed_key).encode())
        self._numbers: dict[bytes, _Numbers] = {}
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
            return self._waited + (time.monotonic() - self._waiting_since if self._running else 0.0)

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

    @contextmanager
    def running(self, block: Interruptible) -> Iterator[None]:
        """Count a call as in flight. Raises ``GatewayError`` once the session is closed."""
        with self._lock:
            self._check_open()
            if not self._running:
                self._waiting_since = time.monotonic()
            self._running.add(block)
        try:
            yield
        finally:
            with self._lock:
                if self._running == {block}:
                    self._waited += time.monotonic() - self._waiting_since
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

    @contextmanager
    def numbered(self, prompt_ids: Sequence[int], fields: str) -> Iterator[Draw]:
        """What everything random about this request derives from: the session's seed and the request itself.

        Equal are requests with the same prompt, which is the parent chain and the messages as the model
        sees them, and the same sampling ``fields``; when they arrive plays no part. A request that fails
        gives its number among equal ones back.
        """
        shared = self._seed.copy()
        shared.update(array("q", prompt_ids).tobytes())
        shared.update(fields.encode())
        key = shared.digest()
        with self._lock:
            numbers = self._numbers.setdefault(key, _Numbers())
            number = numbers.take()
        try:
            yield Draw(key, hashlib.sha256(key + number.to_bytes(4)).digest())
        except BaseException:
            with self._lock:
                numbers.give_back(number)
            raise

    def mixed(self, seed: int) -> int:
        """A request's own ``seed`` as this session's: another one in every episode, and below 2**31."""
        digest = self._seed.copy()
        digest.update(repr(seed).encode())
        return int.from_bytes(digest.digest()[:4]) >> 1

    def record(self, plan: Plan, record: Record) -> None:
        """Put a completed call into the tree. Raises ``GatewayError`` once the session is closed."""
        turn = plan.match.turn if record.extends else None
        start, known = (turn.position, len(plan.history)) if turn and turn.position else (ROOT, 0)
        with self._lock:
            self._check_open()
            end = self.tree.add_given(record.prompt_ids[known:], start)
            end = self.tree.add_sampled(record.completion_ids, record.sampled, end)
            self._keep(record.call, record.tools, record.keys, _turn(record, end), record.spelled)

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


def _turn(record: Record, end: Position) -> Turn:
    message = record.call.message
    return Turn(
        call=record.call.id,
        digest=record.digest,
        position=None if record.shown is None else Position(end.span, record.shown),
        prompt_tokens=len(record.prompt_ids),
        thinking=record.thinking,
        message=message,
        tool_call_ids=tuple(call["id"] for call in message.get("tool_calls") or ()),
    )
