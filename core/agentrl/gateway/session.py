"""Sessions: an episode's private view of the gateway, the credentials that open it, and what it recorded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, NoReturn

from agentrl.errors import AgentRLError, ConfigError, GatewayError
from agentrl.gateway.bodies import Bodies
from agentrl.gateway.contract import Call, Exchange, SessionSettings
from agentrl.gateway.conversations import Continuation, Conversations, History, Match, MessageKey, Turn, Way
from agentrl.gateway.prompts import Prompts
from agentrl.gateway.retries import Retries
from agentrl.gateway.sampling import Digested, Draws
from agentrl.gateway.traffic import Traffic
from agentrl.loops import Interruptible
from agentrl.redaction import SECRET, redact
from agentrl.tokens.contract import ROOT, Position, Sampled, TokenTree
from agentrl.tokens.template import Message

__all__ = [
    "Credentials",
    "SampledTokens",
    "Session",
    "Sessions",
    "WorkerEndpoint",
    "bearer",
    "new_credentials",
    "session_of",
]

_TURNS = 10
"""Turns of a server's event loop after which it has read from its sockets which clients have gone."""
_HEARD_S = 2.0
"""Most seconds to wait for these turns."""
_SEAL_BYTES = 16
"""How much of a handle proves that it was given in its session."""
_REFUSALS = 1000
"""How many errors a session remembers; a client may be refused for ever."""
_REMEMBERED = 100_000
"""How many closed sessions are remembered, so that a late call can be told so."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The secrets of a session: a key, and a capture token in the path of its base URL.

    Both hold 256 random bits and the session's public id, by which the session is found.
    """

    session: str
    key: str = field(repr=False)
    capture: str = field(repr=False)

    def opens_with_key(self, given: str) -> bool:
        """Whether ``given`` is this session's key, in constant time."""
        return hmac.compare_digest(given.encode(), self.key.encode())

    def opens_with_capture(self, given: str) -> bool:
        """Whether ``given`` is this session's capture token, in constant time."""
        return hmac.compare_digest(given.encode(), self.capture.encode())


def new_credentials() -> Credentials:
    """Random credentials of a new session."""
    session = secrets.token_hex(6)
    key, capture = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    return Credentials(session, f"sk-agentrl-{session}-{key}", f"capture-{session}-{capture}")


def session_of(secret: str) -> str | None:
    """The public session id in a key or a capture token; ``None`` for any other text."""
    match = SECRET.fullmatch(secret)
    return match.group(2) if match else None


def bearer(authorization: str) -> str:
    """The key in an ``Authorization`` header, with the scheme ``Bearer`` in any case, or with no scheme at all."""
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else authorization.strip()


class WorkerEndpoint:
    """A base URL and a key for a process that runs one episode after another, valid until it is closed.

    A client that an agent makes when its module is imported is older than every episode. Its calls belong to the
    episode that the process runs when they are made. Safe to use from any thread.
    """

    def __init__(self, credentials: Credentials, base_url: str, on_close: Callable[[WorkerEndpoint], None]) -> None:
        self.id = credentials.session
        self.credentials = credentials
        self.base_url = base_url
        self.api_key = credentials.key
        self._on_close = on_close
        self._attached: tuple[str, ...] = ()

    def attach(self, session_api_key: str) -> None:
        """The process begins the episode whose session has this key. Raises ``ConfigError`` for any other text."""
        self._attached = (*self._attached, _session_of_key(session_api_key))

    def detach(self, session_api_key: str) -> None:
        """The process has ended that episode. Safe to call twice."""
        ended = _session_of_key(session_api_key)
        self._attached = tuple(session for session in self._attached if session != ended)

    def close(self) -> None:
        """Refuse all calls from now on. Safe to call twice."""
        self._on_close(self)

    def session(self) -> str:
        """The id of the one attached session. Raises ``GatewayError``: 404 where none is, 409 where several are."""
        attached = self._attached
        if not attached:
            raise GatewayError(
                "no episode runs in the process that made this call",
                status=404,
                code="no_episode",
                fix="call the model inside run()",
            )
        if len(attached) > 1:
            raise GatewayError(
                f"{len(attached)} episodes run in this process, and an older client cannot tell them apart",
                status=409,
                code="ambiguous_episode",
                fix="make the client inside run(), or set rollout.episodes_per_worker=1",
            )
        return attached[0]


def _session_of_key(key: str) -> str:
    session = session_of(key)
    if session is None:
        raise ConfigError("what was attached is no key of a session", fix="pass the api_key that open_session gave")
    return session


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The tokens of a completed call, for the token tree."""

    prompt_ids: list[int]
    ids: tuple[int, ...]
    """The completion."""
    source: Sampled
    """Where the completion came from: its call, log-probabilities, versions and temperature."""
    shown: int | None
    """How many tokens of the completion the agent saw; ``None`` where that ends inside a token."""
    extends: bool
    """Whether the prompt begins with the ids of the matched turn's conversation."""
    digested: Digested
    """The digest of the prompt."""


class RunningCall(Interruptible):
    """A call in flight, which its session's closing ends with an error."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def __enter__(self) -> RunningCall:
        self._session.enter(self)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.leave(self)
        super().__exit__(kind, error, trace)


class Session:
    """A session of the gateway. Safe to use from any thread.

    Attributes are the agent's connection (``base_url``, ``api_key``, ``http_client``), what was recorded (``tree``,
    ``calls``) and what was refused (``refusals``).
    """

    def __init__(
        self,
        settings: SessionSettings,
        credentials: Credentials,
        base_url: str,
        http_client: object,
        on_close: Callable[[Session], None],
        traffic: Traffic,
    ) -> None:
        self.id = credentials.session
        """Names the session in messages and logs. It is public: it opens nothing."""
        self.settings = settings
        self.credentials = credentials
        self.base_url = base_url
        self.api_key = credentials.key
        self.opened = time.monotonic()
        """When it was opened, from which on the calls of its episode are timed."""
        self.http_client = http_client
        """For ``AsyncOpenAI(http_client=…)``: reaches the gateway in process."""
        self.tree = TokenTree()
        self.retries = Retries()
        self.draws = Draws(settings.seed_key)
        self._lock = threading.Lock()
        self._on_close = on_close
        self._traffic = traffic
        self._calls: dict[str, Call] = {}
        self._turns: dict[str, Turn] = {}
        self._bodies = Bodies()
        self._memories: dict[object, dict[str, Any]] = {}
        self._refusals: deque[AgentRLError] = deque(maxlen=_REFUSALS)
        self._completed_before_refusal = -1
        self._conversations = Conversations()
        self._prompts: Prompts | None = None  # Few agents complete prompts.
        self._running: set[RunningCall] = set()
        self._waited = self._waiting_since = 0.0
        self._time = _loop_time()
        self._used = self._time()
        self._servers: set[asyncio.AbstractEventLoop] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Session {self.id}: {len(self._calls)} calls, {'closed' if self._closed else 'open'}>"

    @property
    def calls(self) -> tuple[Call, ...]:
        """The completed calls, in the order in which they ended."""
        with self._lock:
            return tuple(self._calls.values())

    @property
    def refusals(self) -> tuple[AgentRLError, ...]:
        """The errors with which the latest calls that failed were answered, oldest first."""
        return tuple(self._refusals)

    @property
    def refused_last(self) -> bool:
        """Whether no call was completed after the last one that failed."""
        return len(self._calls) == self._completed_before_refusal

    @property
    def in_flight(self) -> int:
        """How many calls wait for the model."""
        return len(self._running)

    @property
    def waited(self) -> float:
        """Seconds in which at least one call waited for the model, by the clock of deadlines."""
        with self._lock:
            return self._waited + (self._time() - self._waiting_since if self._running else 0.0)

    @property
    def idle_s(self) -> float:
        """Seconds since a request of it came in or a call ended, by the clock of deadlines; 0 while a call waits."""
        with self._lock:
            return 0.0 if self._running else self._time() - self._used

    def touch(self) -> None:
        """Note that a request of the session has come in."""
        self._used = self._time()

    def spans(self) -> list[dict[str, Any]]:
        """The token tree as it is now, as ``TokenTree.to_json`` gives it."""
        with self._lock:
            return self.tree.to_json()

    def close(self) -> None:
        """End the session: refuse calls in flight and later ones, and record nothing more.

        Safe to call twice and from any thread.
        """
        with self._lock:
            running, self._running = self._running, set()
            self._closed = True
        for block in running:
            block.interrupt(_closed_error(self.id))
        self._traffic.closed(self.id)
        self._on_close(self)

    def served_by_this_loop(self) -> None:
        """Note that a request of this session came over a socket of the running event loop."""
        self._servers.add(asyncio.get_running_loop())

    async def deliveries_known(self) -> None:
        """Return once the gateway knows of every answer that was lost because its client has left by now.

        A server with a thread of its own learns that a moment after the agent has closed its connection.
        """
        here = asyncio.get_running_loop()
        servers = [loop for loop in self._servers if loop is not here and loop.is_running()]
        if not servers:
            return
        await _loop_turns(2)  # In which this loop closes the sockets that the agent has left to it.
        hearing = []
        for loop in servers:
            turns = _loop_turns(_TURNS)
            try:
                hearing.append(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turns, loop)))
            except RuntimeError:  # The server has just ended.
                turns.close()
        if hearing:
            await asyncio.wait(hearing, timeout=_HEARD_S)

    def running(self) -> RunningCall:
        """A block in which a call is in flight; it ends with an error when the session closes."""
        return RunningCall(self)

    def enter(self, call: RunningCall) -> None:
        """Count a call as in flight. Raises ``GatewayError`` (404) once the session is closed."""
        with self._lock:
            self._check_open()
            if not self._running:
                self._waiting_since = self._time()
            self._running.add(call)
        self._traffic.began(self.id, call)

    def leave(self, call: RunningCall) -> None:
        """Count a call as in flight no more."""
        with self._lock:
            if self._running == {call}:
                self._used = self._time()
                self._waited += self._used - self._waiting_since
            self._running.discard(call)
        self._traffic.ended(call)

    def refuse(self, error: AgentRLError) -> None:
        """Keep an error with which a call is being answered."""
        self._refusals.append(error)
        self._completed_before_refusal = len(self._calls)

    def continuation(self, tools: str, messages: Sequence[Message]) -> Continuation:
        """What a request continues. It counts as continued, unless the call fails and ``abandon`` is called.

        ``tools`` is what ``tools_key`` makes of the request's tools.
        """
        with self._lock:
            match, way = self._conversations.find(tools, messages)
            return Continuation(match, way, self._continued(match.turn), self._conversations.spelled(way.keys))

    def prompt_continuation(self, prompt: str | Sequence[int]) -> Continuation:
        """What a prompt without messages continues. It counts as ``continuation`` does."""
        with self._lock:
            turn, known = (None, 0) if self._prompts is None else self._prompts.find(prompt)
            return Continuation(Match(turn, 0, None), Way("", [], [], [], 0, 0), self._continued(turn), [], known)

    def _continued(self, turn: Turn | None) -> History:
        """The ids of the conversation that ``turn``, which is being continued, ends."""
        if turn is None:
            return History([], ())
        turn.continued += 1
        if turn.position is None:
            return History([], ())
        if (recent := self._conversations.history(turn)) is not None:
            return recent
        ids = self.tree.path(turn.position)
        return History(ids[: turn.prompt_tokens], ids[turn.prompt_tokens :])

    def abandon(self, continuation: Continuation) -> None:
        """A call that would have continued something has failed."""
        if continuation.match.turn is not None:
            with self._lock:
                continuation.match.turn.continued -= 1

    def recall(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request's ``body``, just read, in which what it repeats of a recent one is the same object as there.

        To compare the two again then takes no time. What is in the body must not be changed.
        """
        with self._lock:
            return self._bodies.recall(body)

    def keep(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A request's body as ``Call.request``, sharing what earlier bodies hold. It must not be changed afterwards."""
        with self._lock:
            return self._bodies.keep(body)

    def record(
        self,
        call: Call,
        turn: Turn,
        key: MessageKey,
        continues: Continuation,
        *,
        tokens: SampledTokens | None = None,
        spelled: frozenset[str] = frozenset(),
        prompt: str | None = None,
    ) -> None:
        """Record a completed call and its ``tokens``, if it has any.

        ``turn`` is the end of the conversation that ``continues`` tells of, and ``key`` is that of its message; its
        position is set here. ``spelled`` are the control tokens that its text spells out in other tokens. ``prompt`` is
        the text of a prompt without messages; ``key`` then does not count. Raises
        ``GatewayError`` (404) once the session is closed.
        """
        told = None
        if tokens is not None and tokens.shown is not None:
            shown = tokens.ids[: tokens.shown]
            told = History(tokens.prompt_ids, shown, tokens.digested.further(shown))
        with self._lock:
            self._check_open()
            if tokens is not None:
                turn.position = self._grow(continues, tokens)
            self._calls[call.id] = call
            self._turns[call.id] = turn
            parent = continues.match.turn
            if prompt is None or tokens is None:
                self._conversations.add(continues.way, key, turn, spelled, parent=parent, history=told)
            elif tokens.shown != 0:  # After an answer without a text the prompt is the same as before.
                ids = [*tokens.prompt_ids, *tokens.ids[: tokens.shown]]
                self._prompts = self._prompts or Prompts()
                self._prompts.add(f"{prompt}{turn.message['content']}", ids, turn)

    def _grow(self, continues: Continuation, tokens: SampledTokens) -> Position | None:
        """Add a call's tokens to the tree; where the conversation goes on from there."""
        start, known = ROOT, 0
        if tokens.extends and continues.match.turn is not None:
            start = continues.match.turn.position or ROOT
            known = len(continues.history.prompt) + len(continues.history.completion)
        end = self.tree.add_given(tokens.prompt_ids[known:], start)
        end = self.tree.add_sampled(tokens.ids, tokens.source, end)
        return None if tokens.shown is None else Position(end.span, tokens.shown)

    def memory(self, owner: object) -> dict[str, Any]:
        """What ``owner``, a dialect, keeps in this session."""
        return self._memories.setdefault(owner, {})

    def handle(self, call: str) -> str:
        """An opaque text that stands for the thinking of a recorded call, and that ``thinking`` takes back."""
        return base64.urlsafe_b64encode(call.encode() + self._seal(call)).decode()

    def thinking(self, handle: str) -> str | None:
        """The thinking that a ``handle`` of this session stands for; ``None`` for any other text."""
        try:
            raw = base64.urlsafe_b64decode(handle)
            call = raw[:-_SEAL_BYTES].decode()
        except (ValueError, binascii.Error):
            return None
        recorded = self._calls.get(call)
        if recorded is None or not hmac.compare_digest(raw[-_SEAL_BYTES:], self._seal(call)):
            return None
        return str(recorded.message.get("reasoning_content") or "")

    def _seal(self, call: str) -> bytes:
        return hmac.digest(self.credentials.key.encode(), call.encode(), hashlib.sha256)[:_SEAL_BYTES]

    def arrived(self, call: str, arrived: bool) -> None:
        """Note that the answer to a call was lost on its way to the client, or that it is there after all.

        Works also once the session is closed.
        """
        with self._lock:
            told = self._calls[call]
            if told.delivered == arrived:
                return
            self._calls[call] = replace(told, delivered=arrived)
            self._turns[call].delivered = arrived
            if told.parent is not None:
                self._turns[told.parent].continued += 1 if arrived else -1

    def _check_open(self) -> None:
        if self._closed:
            raise _closed_error(self.id)


def _closed_error(session: str) -> GatewayError:
    return GatewayError(
        f"session {session} is closed: its episode has ended",
        status=404,
        code="session_closed",
        fix="make every call before run() returns",
    )


def _loop_time() -> Callable[[], float]:
    """The clock of deadlines: the running event loop's, which stands still while the process is paused."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic


async def _loop_turns(count: int) -> None:
    """Let the running loop look at its sockets ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Sessions:
    """The live sessions of a gateway, found by key or by capture token. Safe to use from any thread."""

    def __init__(self) -> None:
        self._live: dict[str, Session] = {}
        self._workers: dict[str, WorkerEndpoint] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, session: Session) -> None:
        """A session opens."""
        with self._lock:
            self._live[session.id] = session

    def remove(self, session: Session) -> None:
        """A session has closed. Safe to call twice."""
        with self._lock:
            if self._live.pop(session.id, None) is not None:
                self._closed[session.id] = None
            while len(self._closed) > _REMEMBERED:
                self._closed.popitem(last=False)

    def add_worker(self, endpoint: WorkerEndpoint) -> None:
        """A process that will run episodes is given an endpoint."""
        with self._lock:
            self._workers[endpoint.id] = endpoint

    def remove_worker(self, endpoint: WorkerEndpoint) -> None:
        """A process's endpoint has closed. Safe to call twice."""
        with self._lock:
            self._workers.pop(endpoint.id, None)

    def all(self) -> list[Session]:
        """Every live session."""
        with self._lock:
            return list(self._live.values())

    def of_key(self, key: str) -> Session | None:
        """The live session with this key."""
        session = self._live.get(session_of(key) or "")
        return session if session is not None and session.credentials.opens_with_key(key) else None

    def knows_key(self, key: str) -> bool:
        """Whether this is the key of a live session, or one of a session that has closed."""
        session = session_of(key)
        return session is not None and (self.of_key(key) is not None or session in self._closed)

    def identify(self, exchange: Exchange, capture: str | None) -> Session:
        """The session of a request with a ``capture`` token in its path, a key in its headers, or both.

        Either may be that of a worker's endpoint, which stands for the session attached to it. Raises
        ``GatewayError``: 404 for a session that has closed, 401 for missing or unknown credentials, or for two that
        open different sessions, and 409 for an endpoint with several sessions.
        """
        key = bearer(exchange.headers.get("authorization", "")) or exchange.headers.get("x-api-key", "")
        if capture is None:
            return self.of_key(key) or self._of_worker(key, Credentials.opens_with_key) or self._refuse(key, "key")
        session = self._of_capture(capture) or self._of_worker(capture, Credentials.opens_with_capture)
        if session is None:
            self._refuse(capture, "base URL")
        by_key = self.of_key(key)
        if by_key is None and not exchange.loopback and self._of_worker(key, Credentials.opens_with_key) != session:
            self._refuse(key, "key")
        if by_key not in (None, session):
            raise GatewayError(
                f"the key is that of session {session_of(key)}, the base URL that of session {session.id}",
                status=401,
                code="invalid_api_key",
                fix="use the base_url and api_key of one episode together",
            )
        return session

    def _of_capture(self, capture: str) -> Session | None:
        session = self._live.get(session_of(capture) or "")
        return session if session is not None and session.credentials.opens_with_capture(capture) else None

    def _of_worker(self, secret: str, opens: Callable[[Credentials, str], bool]) -> Session | None:
        """The session attached to the worker's endpoint that ``secret`` opens. Raises as ``WorkerEndpoint.session``,
        and 404 where that session has closed."""
        endpoint = self._workers.get(session_of(secret) or "")
        if endpoint is None or not opens(endpoint.credentials, secret):
            return None
        attached = endpoint.session()
        session = self._live.get(attached)
        if session is None:
            raise _closed_error(attached)
        return session

    def _refuse(self, secret: str, kind: str) -> NoReturn:
        session = session_of(secret)
        if session is not None and session in self._closed:
            raise _closed_error(session)
        given = redact(secret) if session else f"{secret[:8]}…"
        raise GatewayError(
            f"no session has the {kind} {given}" if secret else f"the request has no {kind}",
            status=401,
            code="invalid_api_key",
            fix="use the base_url and api_key that run() was given",
        )
