"""The gateway: answers requests, whether they come over HTTP or in process."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

from agentrl.clients import reach_loopback_directly
from agentrl.errors import AgentRLError, BackendError, GatewayError, PromptTooLong, UnsupportedSampling, shown
from agentrl.gateway.calls import Caller
from agentrl.gateway.contract import SessionSettings
from agentrl.gateway.credentials import bearer, new_credentials
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.dialects.contract import Dialect
from agentrl.gateway.exchange import Exchange, Reply
from agentrl.gateway.interrupt import Interruptible
from agentrl.gateway.request import Completes
from agentrl.gateway.retries import Attempt
from agentrl.gateway.routes import Models, Routes, address_of, wrong_method
from agentrl.gateway.server import Server
from agentrl.gateway.session import Session
from agentrl.gateway.sessions import Sessions
from agentrl.gateway.standing import StandingEndpoint
from agentrl.gateway.transport import SharedClients
from agentrl.inference.contract import Backend, Capabilities
from agentrl.tokens.renderer import Renderer

__all__ = ["Gateway"]

_log = logging.getLogger(__name__)

_HEARD_S = 0.05
"""How long after an answer was given its client is known to have gone, if it had."""

BODY_LIMIT = 32 * 2**20
"""Most bytes of a request's body."""


class Gateway:
    """Sessions in front of a backend. ``start`` serves them over HTTP; in process they work without.

    Use it from any thread. Stopping it closes every session.
    """

    tries_again: ClassVar[bool] = False
    """Whether its backend has tried again, by itself, what may go better another time."""

    def __init__(
        self,
        backend: Backend,
        capabilities: Capabilities,
        renderer: Renderer,
        *,
        vocabulary: int | None = None,
        body_limit: int = BODY_LIMIT,
    ) -> None:
        """``vocabulary`` is how many ids the model knows: a backend that gives others is refused."""
        self._caller: Completes = Caller(backend, capabilities, renderer, vocabulary)
        self._set_up(ChatCompletions(renderer.vocabulary), body_limit=body_limit)

    def _set_up(self, *dialects: Dialect, body_limit: int) -> None:
        self.body_limit = body_limit
        self._sessions = Sessions()
        self._routes = Routes(dialects)
        self._server = Server(self)
        self._clients = SharedClients(self)

    @property
    def url(self) -> str:
        """Where the gateway is served; a name that nobody can look up while it is not."""
        return self._server.url or "http://gateway.invalid"

    def start(self) -> None:
        """Serve over HTTP on a free port of this machine, which clients made from now on reach past any proxy.

        Raises ``RunError`` if that takes too long.
        """
        reach_loopback_directly()
        self._server.start()

    def stop(self) -> None:
        """Close every session and the server. Safe to call twice."""
        for session in self._sessions.all():
            session.close()
        self._server.stop()
        self._clients.stop()

    def open_session(self, settings: SessionSettings) -> Session:
        """A session of its own for one episode; close it when the episode ends."""
        credentials = new_credentials()
        base_url = f"{self.url}/{credentials.capture}/v1"
        session = Session(settings, credentials, base_url, self.http_client(), self._sessions.remove)
        self._sessions.add(session)
        return session

    def open_standing(self) -> StandingEndpoint:
        """An endpoint for a process that runs one episode after another; close it when the process ends."""
        credentials = new_credentials()
        base_url = f"{self.url}/{credentials.capture}/v1"
        endpoint = StandingEndpoint(credentials, base_url, self._sessions.remove_standing)
        self._sessions.add_standing(endpoint)
        return endpoint

    def http_client(self, library: ModuleType | None = None) -> Any:
        """The ``AsyncClient`` of ``library``, ``httpx`` or ``httpx2``, that reaches the gateway in process;
        by default of the one that the installed openai package takes. One for all, and nobody can close it."""
        return self._clients.get(library)

    def captures(self, authorization: str) -> bool:
        """Whether a request anywhere with this ``Authorization`` header is one of a session."""
        return self._sessions.knows_key(bearer(authorization))

    async def answer(self, exchange: Exchange) -> Reply:
        """Answer one request. Only cancellation is raised."""
        session: Session | None = None
        try:
            address = address_of(exchange.path)
            session = self._sessions.identify(exchange, address.capture)
            if not exchange.in_process:
                session.served_by_this_loop()
            found, methods = self._routes.find(address.route, exchange)
            if exchange.method not in methods:
                return self.refusal(wrong_method(exchange, methods), session, {"allow": ", ".join(methods)})
            if exchange.method == "OPTIONS":
                return Reply(204, b"", {"allow": ", ".join(methods)})
            if isinstance(found, Models):
                return found.reply(session.settings.model)
            return await self._answer_once(session, found, exchange)
        except Exception as error:  # The boundary to the client: everything becomes a status.
            return self.refusal(error, session)

    async def _answer_once(self, session: Session, dialect: Dialect, exchange: Exchange) -> Reply:
        """The answer to a request, or to the one that it is a retry of."""
        while True:
            taken = session.retries.take(exchange)
            if isinstance(taken, Attempt):
                return await self._attempt(session, dialect, exchange, taken)
            if isinstance(taken, Reply):
                return taken
            if await asyncio.shield(asyncio.wrap_future(taken)):
                await asyncio.sleep(_HEARD_S)

    async def _attempt(self, session: Session, dialect: Dialect, exchange: Exchange, attempt: Attempt) -> Reply:
        try:
            with Interruptible() as block, session.running(block):
                body, overridden = dialect.override(self._body(exchange), session.settings.override)
                request = dialect.parse(body)
                completion = await self._caller.complete(session, request, overridden)
            reply = Reply(200, dialect.respond(request, completion), {"x-request-id": completion.call.id})
        except BaseException:
            session.retries.fail(attempt)
            raise
        return session.retries.succeed(attempt, reply, partial(session.arrived, completion.call.id))

    def _body(self, exchange: Exchange) -> dict[str, Any]:
        self.check_size(len(exchange.body))
        try:
            body = json.loads(exchange.body)
            if b"\\u" in exchange.body:
                json.dumps(body, ensure_ascii=False).encode()  # An escape may be half a character.
        except (ValueError, RecursionError) as error:
            raise GatewayError(f"the body is not JSON: {error}", code="invalid_json") from error
        if not isinstance(body, dict):
            raise GatewayError(f"the body is not a JSON object but {shown(body, 80)}", code="invalid_json")
        return body

    def check_size(self, size: int) -> None:
        """Raises ``GatewayError`` (413) for a body of ``size`` bytes that is too large."""
        if size > self.body_limit:
            raise GatewayError(
                f"the body of {size} bytes is over the limit of {self.body_limit}",
                status=413,
                code="request_too_large",
                fix="send a shorter history",
            )

    def refusal(
        self, error: Exception, session: Session | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """An error as it is answered, and remembered in its session."""
        if not isinstance(error, AgentRLError):
            _log.error("the gateway failed to answer a request", exc_info=error)
        refusal = _as_refusal(error)
        if session is not None:
            # What may go better another time keeps its side; what a request got wrong is the gateway's no.
            session.refuse(error if isinstance(error, AgentRLError) and refusal.status >= 500 else refusal)
        # A client is not to guess: what fails again is not worth its retries.
        again = refusal.status == 408 or (refusal.status == 503 and not self.tries_again)
        dialect = next(iter(self._routes.dialects.values()))
        advice = {"x-should-retry": "true" if again else "false"}
        return Reply(refusal.status, dialect.refuse(refusal), {**advice, **(headers or {})})


def _as_refusal(error: Exception) -> GatewayError:
    """An error as the API reports it: 4xx for what would fail again, 503 for what may not."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, PromptTooLong):
        return GatewayError(error.message, code="context_length_exceeded", param="messages", fix=error.fix)
    if isinstance(error, UnsupportedSampling):
        return GatewayError(error.message, code="unsupported_value", fix=error.fix)
    if isinstance(error, BackendError):
        return GatewayError(error.message, status=503, code="backend_error", fix=error.fix)
    return GatewayError(f"{type(error).__name__}: {error}", status=500, code="gateway_error")
