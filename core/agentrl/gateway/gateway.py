"""The gateway: answers requests, whether they come over HTTP or in process.

A request goes this way: its path is taken apart (``split_path``) and finds the route of a dialect (``Routes``); its
credentials find the session; the dialect reads the body; a retry finds the attempt that it repeats;
``gateway.normalise`` replaces what changes in texts of the system; the completer has the request completed and records
it; the dialect writes the reply. An error on the way is written by the dialect that owns the route, or by the first
dialect where no route is found.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

import orjson

from agentrl.clients import reach_directly, reach_loopback_directly
from agentrl.errors import (
    AgentRLError,
    BackendError,
    GatewayError,
    PromptTooLong,
    UnsupportedSampling,
    one_line,
    shown,
)
from agentrl.gateway.address import Address
from agentrl.gateway.connection import DEFAULT_LIMITS, ConnectionLimits
from agentrl.gateway.contract import (
    CONTEXT_EXCEEDED,
    Completer,
    Completion,
    Delta,
    Dialect,
    Event,
    Exchange,
    ModelRequest,
    Reply,
    Route,
    SessionSettings,
    WireRequest,
)
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.dialects.completions import Completions
from agentrl.gateway.dialects.messages.dialect import Messages
from agentrl.gateway.dialects.models import Models
from agentrl.gateway.dialects.responses.dialect import Responses
from agentrl.gateway.normalise import Normalisers
from agentrl.gateway.openapi import Document
from agentrl.gateway.resource import Resource, ResourceRequest
from agentrl.gateway.retries import Attempt, parts
from agentrl.gateway.routes import Routes, methods_of, split_path, wrong_method
from agentrl.gateway.server import Server
from agentrl.gateway.session import Session, Sessions, WorkerEndpoint, bearer, new_credentials
from agentrl.gateway.streaming import LiveAnswer, replayed, with_last_part
from agentrl.gateway.traffic import Traffic
from agentrl.gateway.transport import SharedClients
from agentrl.plugins import Plugins

__all__ = ["Gateway", "registered_dialects"]

_log = logging.getLogger(__name__)

BODY_LIMIT = 32 * 2**20
"""Most bytes of a request's body."""

_HEARD_S = 0.05
"""Seconds after an answer was sent in which the server hears that its client has gone, if it has."""

_CHAT = "agentrl.gateway.dialects.chat:ChatCompletions"
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


class Gateway:
    """Sessions in front of a completer. ``start`` serves them over HTTP; the in-process client works without it.

    Safe to use from any thread. Stopping it closes every session.
    """

    def __init__(
        self,
        completer: Completer,
        dialects: Sequence[Dialect] | None = None,
        *,
        normalisers: Normalisers | None = None,
        body_limit: int = BODY_LIMIT,
        address: Address | None = None,
        connections: ConnectionLimits = DEFAULT_LIMITS,
    ) -> None:
        """Serve ``dialects``, by default those of agentrl itself. The first one writes errors for unknown routes.

        ``normalisers`` apply to every request, by default none. ``body_limit`` is the most bytes of a request's body,
        and ``connections`` limits what else a client may use of the server. ``address`` is where
        ``start`` serves, by default a free port of the loopback interface. Raises ``ConfigError`` where there is no
        dialect, or where two serve one route.
        """
        self.completer = completer
        self._normalisers = normalisers or Normalisers()
        self.body_limit = body_limit
        own: tuple[Dialect, ...] = (ChatCompletions(), Completions(), Messages(), Models(), Responses())
        self._dialects = own if dialects is None else tuple(dialects)
        self._resources: tuple[Resource, ...] = ()
        self.attach(Document(lambda: self._routes.owners))
        self._sessions = Sessions()
        self.traffic = Traffic()
        self._server = Server(self, connections, address=address)
        self._clients = SharedClients(self)

    def attach(self, resource: Resource) -> None:
        """Serve ``resource`` too. Raises ``ConfigError`` where something else serves one of its routes."""
        resources = (*self._resources, resource)
        self._routes = Routes(self._dialects, resources)
        self._resources = resources

    @property
    def url(self) -> str:
        """Where clients reach the gateway; while it is not served, a URL whose host does not exist."""
        return self._server.url or "http://gateway.invalid"

    @property
    def address(self) -> Address:
        """Where ``start`` serves."""
        return self._server.address

    def start(self) -> None:
        """Serve over HTTP. Clients on this machine that are made from now on reach it without a proxy.

        Raises ``ConfigError`` where the address cannot be taken or its certificate is of no use, and ``RunError`` where
        the server does not start in time.
        """
        reach_loopback_directly()
        self.http_client()  # Made now: the first episode does not wait for it.
        self._server.start()
        reach_directly(self.url)

    def stop(self) -> None:
        """Close every session, and the server. Safe to call twice."""
        for session in self._sessions.all():
            session.close()
        self._server.stop()
        self._clients.stop()

    def open_session(self, settings: SessionSettings) -> Session:
        """Open a session for one episode. Close it when the episode ends."""
        credentials = new_credentials()
        base_url = f"{self.url}/{credentials.capture}/v1"
        session = Session(settings, credentials, base_url, self.http_client(), self._sessions.remove, self.traffic)
        self._sessions.add(session)
        self.traffic.opened(session.id)
        return session

    def open_worker_endpoint(self) -> WorkerEndpoint:
        """Open an endpoint for a process that runs one episode after another. Close it when the process ends."""
        credentials = new_credentials()
        base_url = f"{self.url}/{credentials.capture}/v1"
        endpoint = WorkerEndpoint(credentials, base_url, self._sessions.remove_worker)
        self._sessions.add_worker(endpoint)
        return endpoint

    def http_client(self, library: ModuleType | None = None) -> Any:
        """The shared ``AsyncClient`` that reaches the gateway in process, and that nobody can close.

        It is one of ``library``, ``httpx`` or ``httpx2``; by default of the one that the openai package accepts.
        """
        return self._clients.get(library)

    def captures(self, authorization: str) -> bool:
        """Whether a request to any URL with this ``Authorization`` header is one of a session."""
        return self._sessions.knows_key(bearer(authorization))

    async def answer(self, exchange: Exchange) -> Reply:
        """Answer one request. Raises nothing but ``asyncio.CancelledError``."""
        session: Session | None = None
        owner: Dialect | Resource | None = None
        try:
            capture, path = split_path(exchange.path)
            owner, route, parameters = self._routes.find(path)
            if isinstance(owner, Resource) and route is not None:
                return self._by_method(exchange, owner, route) or await self._resourced(
                    exchange, owner, route, parameters
                )
            session = self._sessions.identify(exchange, capture)
            session.touch()
            if not exchange.in_process:
                session.served_by_this_loop()
            if owner is None or route is None or isinstance(owner, Resource):
                raise self._routes.unknown(exchange)
            dialect = owner
            if (early := self._by_method(exchange, dialect, route, session)) is not None:
                return early
            body = session.recall(self._body(exchange))
            overridden: tuple[str, ...] = ()
            if body and session.settings.override:
                body, overridden = dialect.override(body, session.settings.override)
            request = WireRequest(
                exchange.method,
                route,
                parameters,
                exchange.headers,
                body,
                session.settings,
                self.completer.context_length,
                self.completer.relays,
                session.memory(dialect),
                session.thinking,
                session.handle,
                dict(parse_qsl(exchange.query, keep_blank_values=True)) if exchange.query else {},
                partial(self._count, session),
            )
            asked = dialect.parse(request)
            if isinstance(asked, Reply):
                return asked if isinstance(asked.body, bytes) else replace(asked, body=parts(asked.body))
            several = [
                replace(each, arrived=exchange.arrived)
                for each in ([asked] if isinstance(asked, ModelRequest) else asked)
            ]
            return await self._complete(session, exchange, dialect, request, several, overridden)
        except Exception as error:  # The boundary to the client: everything becomes a status.
            return self._refused(error, owner, session)

    def _by_method(
        self, exchange: Exchange, owner: Dialect | Resource, route: Route, session: Session | None = None
    ) -> Reply | None:
        """The answer to a method that the route does not take, and to ``OPTIONS``; ``None`` for all others."""
        methods = methods_of(route)
        if exchange.method not in methods:
            return self._refused(wrong_method(exchange, methods), owner, session, {"allow": ", ".join(methods)})
        return Reply(204, b"", {"allow": ", ".join(methods)}) if exchange.method == "OPTIONS" else None

    async def _resourced(
        self, exchange: Exchange, resource: Resource, route: Route, parameters: Mapping[str, str]
    ) -> Reply:
        """The answer of a resource, which may be asked without a body."""
        self.check_size(len(exchange.body))
        body = self._body(exchange) if exchange.body else {}
        return await resource.answer(ResourceRequest(exchange.method, route, parameters, exchange.headers, body))

    async def _complete(
        self,
        session: Session,
        exchange: Exchange,
        dialect: Dialect,
        request: WireRequest,
        asked: Sequence[ModelRequest],
        overridden: tuple[str, ...],
    ) -> Reply:
        """The answer of the model to a request, or to the one that it is a retry of."""
        while not isinstance(taken := session.retries.take(exchange, request.route.path), Attempt):
            if isinstance(taken, Reply):
                return taken
            if await asyncio.shield(asyncio.wrap_future(taken)):
                await asyncio.sleep(_HEARD_S)
        if asked[0].stream:
            return await self._stream(session, dialect, request, asked, overridden, taken)
        try:
            if len(asked) == 1:
                completions = [await self._made(session, asked[0], overridden)]
            else:
                completions = await self._several(session, asked, overridden)
            respond = partial(_response, dialect, request, asked, completions)
            reply = respond()
        except BaseException:
            session.retries.fail(taken)
            raise
        return session.retries.succeed(taken, reply, _arrival(session, completions), respond)

    async def _made(
        self,
        session: Session,
        asked: ModelRequest,
        overridden: tuple[str, ...],
        tell: Callable[[Delta], None] | None = None,
    ) -> Completion:
        """One completion, of what ``gateway.normalise`` makes of the request."""
        with session.running():
            return await self.completer.complete(session, self._normalisers.applied(asked), overridden, tell)

    def _count(self, session: Session, asked: ModelRequest) -> int:
        return self.completer.count(session, self._normalisers.applied(asked))

    async def _several(
        self, session: Session, asked: Sequence[ModelRequest], overridden: tuple[str, ...]
    ) -> list[Completion]:
        """The completions of several requests, made at once. Where one fails, nobody has the others."""

        async def complete(choice: int, each: ModelRequest, tell: Callable[[Delta], None]) -> Completion:
            return await self._made(session, each, overridden)

        answer = LiveAnswer(asked, complete, lambda answer: None)
        try:
            async for _ in answer.events():
                pass
        except BaseException:
            await answer.close()
            for completion in answer.made:
                session.arrived(completion.call.id, False)
            raise
        return answer.completions

    async def _stream(
        self,
        session: Session,
        dialect: Dialect,
        request: WireRequest,
        asked: Sequence[ModelRequest],
        overridden: tuple[str, ...],
        attempt: Attempt,
    ) -> Reply:
        """The answer of the model while it is sampled, from its first token on."""

        async def complete(choice: int, each: ModelRequest, tell: Callable[[Delta], None]) -> Completion:
            def told(delta: Delta) -> None:
                tell(replace(delta, choice=choice) if choice else delta)

            return await self._made(session, each, overridden, told)

        def ended(answer: LiveAnswer) -> None:
            if not answer.completions:
                for completion in answer.made:
                    session.arrived(completion.call.id, False)
                session.retries.fail(attempt)
                return
            again = partial(_again, dialect, request, asked, answer.completions)
            session.retries.streamed(attempt, _arrival(session, answer.completions), again)

        answer = LiveAnswer(asked, complete, ended)
        await answer.begin()
        try:
            reply = dialect.stream(request, asked, self._events(answer, session))
            reply = _streamed(reply, asked, lambda: answer.told)
        except BaseException:
            await answer.close()
            raise
        return session.retries.stream(attempt, reply, answer.cancel)

    async def _events(self, answer: LiveAnswer, session: Session) -> AsyncIterator[Event]:
        """The events of a streamed answer, in which every error is one that the dialect can write."""
        try:
            async for event in answer.events():
                yield event
        except asyncio.CancelledError as error:
            if not answer.given_up:
                raise
            raise GatewayError("the answer was given up", status=503, code="cancelled") from error
        except Exception as error:
            if not isinstance(error, AgentRLError):
                _log.error("the gateway failed to answer a request", exc_info=error)
            refusal = _as_refusal(error)
            session.refuse(error if isinstance(error, AgentRLError) and refusal.status >= 500 else refusal)
            raise refusal from error

    def _body(self, exchange: Exchange) -> dict[str, Any]:
        """The JSON object in a request's body; empty where it has none."""
        self.check_size(len(exchange.body))
        if not exchange.body:
            return {}
        try:
            body = read_json(exchange.body)
        except (ValueError, RecursionError) as error:
            raise GatewayError(f"the body is not JSON: {error}", code="invalid_json") from error
        if not isinstance(body, dict):
            raise GatewayError(f"the body is not a JSON object but {shown(body, 80)}", code="invalid_json")
        return body

    def check_size(self, size: int) -> None:
        """Raise ``GatewayError`` (413) for a body of ``size`` bytes that is too large."""
        if size > self.body_limit:
            raise GatewayError(
                f"the body of {size} bytes is over the limit of {self.body_limit}",
                status=413,
                code="request_too_large",
                fix="send a shorter history",
            )

    def refusal(self, error: Exception, path: str = "") -> Reply:
        """An error as it is answered to a request that could not be read, to ``path`` as far as that is known."""
        return self._refused(error, self._routes.find(split_path(path)[1])[0])

    def _refused(
        self,
        error: Exception,
        dialect: Dialect | Resource | None,
        session: Session | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """An error in the shape of ``dialect``, kept in its session."""
        if not isinstance(error, AgentRLError):
            _log.error("the gateway failed to answer a request", exc_info=error)
        refusal = _as_refusal(error)
        if session is not None:
            _forget_locals(error)
            # What may succeed at another time keeps its side; what is wrong with a request is the gateway's refusal.
            session.refuse(error if isinstance(error, AgentRLError) and refusal.status >= 500 else refusal)
        # Clients need not guess: what would fail again is not worth a retry.
        again = refusal.status in (408, 429) or (refusal.status == 503 and not self.completer.relays)
        try:
            reply = (dialect or self._routes.default).refuse(refusal)
            if not isinstance(reply.body, bytes):
                raise TypeError(f"the body of an error is to be bytes, and is a {type(reply.body).__name__}")
        except Exception as failure:
            _log.error("a dialect failed to write an error", exc_info=failure)
            reply = ChatCompletions().refuse(refusal)
        advice = {"x-should-retry": "true" if again else "false"}
        if refusal.retry_after is not None:
            advice["retry-after"] = str(max(1, math.ceil(refusal.retry_after)))
        return replace(reply, headers={**reply.headers, **advice, **(headers or {})})


def _response(
    dialect: Dialect, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]
) -> Reply:
    reply = dialect.respond(request, asked, completions)
    return Reply(reply.status, reply.body, {**reply.headers, "x-request-id": asked[0].call_id})


def _again(
    dialect: Dialect, request: WireRequest, asked: Sequence[ModelRequest], completions: Sequence[Completion]
) -> Reply:
    """A streamed answer once more."""
    told = False

    async def events() -> AsyncIterator[Event]:
        nonlocal told
        left = len(completions)
        async for event in replayed(asked, completions):
            left -= isinstance(event, Completion)
            told = not left
            yield event

    return _streamed(dialect.stream(request, asked, events()), asked, lambda: told)


def _streamed(reply: Reply, asked: Sequence[ModelRequest], told: Callable[[], bool]) -> Reply:
    """A dialect's reply to a request for a stream, whose last part is marked."""
    if not isinstance(reply.body, AsyncIterator):
        raise TypeError(f"the body of a streamed answer is to be an async iterator, not a {type(reply.body).__name__}")
    headers = {"cache-control": "no-cache", **reply.headers, "x-request-id": asked[0].call_id}
    return Reply(reply.status, with_last_part(reply.body, told), headers)


def _arrival(session: Session, completions: Sequence[Completion]) -> Callable[[bool], None]:
    """What notes whether the client has an answer."""

    def arrived(has: bool) -> None:
        for completion in completions:
            session.arrived(completion.call.id, has)

    return arrived


def read_json(body: bytes) -> Any:
    """The JSON value in ``body``, as Python's ``json`` reads it. Raises ``ValueError`` or ``RecursionError``.

    orjson reads the same in less time, but rounds integers of more than 64 bits; and it refuses what ``json`` takes:
    NaN, other encodings, deep nesting. Half characters, which cannot be written again, are refused by both.
    """
    if b"0000000000000000000" not in body.translate(_DIGITS):  # 19 digits in a row may be too large a number.
        try:
            return orjson.loads(body)
        except ValueError:
            pass
    value = json.loads(body)
    if b"\\u" in body:
        json.dumps(value, ensure_ascii=False).encode()  # An escape may be half a character.
    return value


def _as_refusal(error: Exception) -> GatewayError:
    """An error as clients are told it: with a 4xx status if it would occur again, and 503 if it may not."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, PromptTooLong):
        return GatewayError(error.message, code=CONTEXT_EXCEEDED, param="messages", fix=error.fix)
    if isinstance(error, UnsupportedSampling):
        return GatewayError(error.message, code="unsupported_value", fix=error.fix)
    if isinstance(error, BackendError):
        return GatewayError(error.message, status=503, code="backend_error", fix=error.fix)
    return GatewayError(f"{type(error).__name__}: {error}", status=500, code="gateway_error")


def _forget_locals(error: BaseException) -> None:
    """Keep where the tracebacks lead, and free the requests that the functions on the way held."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next  # The first frame is still running: it is answering.
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and not any(link is other for other in chain):
        traceback.clear_frames(link.__traceback__)
        chain.append(link)
        link = link.__cause__ or link.__context__


def registered_dialects(plugins: Plugins, warn: Callable[[str], None]) -> list[Dialect]:
    """Every registered dialect that is not disabled, chat completions first.

    One that cannot be loaded is left out, and ``warn`` is told which and why.
    """
    dialects: list[Dialect] = []
    plugins.load()
    for entry in sorted(plugins.entries("dialects"), key=lambda entry: entry.target != _CHAT):
        try:
            loaded = plugins.get("dialects", entry.qualified)
            dialects.append(loaded() if isinstance(loaded, type) else loaded)
        except Exception as error:
            warn(f"the dialect {entry.name!r} of {entry.distribution} is not served: {one_line(error)}")
    return dialects
