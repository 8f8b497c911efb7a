"""Which session a request belongs to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

from agentrl.errors import GatewayError
from agentrl.gateway.credentials import Credentials, bearer, redact, session_of
from agentrl.gateway.exchange import Exchange
from agentrl.gateway.session import Session, closed_error
from agentrl.gateway.standing import StandingEndpoint

__all__ = ["Sessions"]

_REMEMBERED = 100_000
"""Ids of closed sessions that are remembered, to say so to a late call."""


class Sessions:
    """The live sessions of a gateway, found by key or by capture token; use it from any thread."""

    def __init__(self) -> None:
        self._live: dict[str, Session] = {}
        self._standing: dict[str, StandingEndpoint] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, session: Session) -> None:
        """A session opens."""
        with self._lock:
            self._live[session.id] = session

    def remove(self, session: Session) -> None:
        """A session has closed; safe to call twice."""
        with self._lock:
            if self._live.pop(session.id, None) is not None:
                self._closed[session.id] = None
            while len(self._closed) > _REMEMBERED:
                self._closed.popitem(last=False)

    def add_standing(self, endpoint: StandingEndpoint) -> None:
        """An endpoint whose sessions change opens."""
        with self._lock:
            self._standing[endpoint.id] = endpoint

    def remove_standing(self, endpoint: StandingEndpoint) -> None:
        """Such an endpoint has closed; safe to call twice."""
        with self._lock:
            self._standing.pop(endpoint.id, None)

    def all(self) -> list[Session]:
        """Every live session."""
        with self._lock:
            return list(self._live.values())

    def of_key(self, key: str) -> Session | None:
        """The live session whose key this is."""
        session = self._live.get(session_of(key) or "")
        return session if session is not None and session.credentials.opens_with_key(key) else None

    def knows_key(self, key: str) -> bool:
        """Whether this is the key of a session, live or closed."""
        session = session_of(key)
        return session is not None and (self.of_key(key) is not None or session in self._closed)

    def identify(self, exchange: Exchange, capture: str | None) -> Session:
        """The session of a request with a capture token in its path, a key, or both.

        Either may be a standing endpoint's, which means the session attached to it. Raises ``GatewayError``: 404
        for a session that has closed or never was, 401 for no credentials that open one, or two that open
        different ones, 409 for an endpoint with several sessions.
        """
        key = bearer(exchange.authorization)
        if capture is None:
            return self.of_key(key) or self._of_standing(key, Credentials.opens_with_key) or self._refuse(key, "key")
        session = self._of_capture(capture) or self._of_standing(capture, Credentials.opens_with_capture)
        if session is None:
            self._refuse(capture, "base URL")
        by_key = self.of_key(key)
        if by_key is None and not exchange.loopback and self._of_standing(key, Credentials.opens_with_key) != session:
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

    def _of_standing(self, secret: str, opens: Callable[[Credentials, str], bool]) -> Session | None:
        """The session attached to the standing endpoint that ``secret`` opens.

        Raises ``GatewayError`` where none is, or more than one.
        """
        endpoint = self._standing.get(session_of(secret) or "")
        if endpoint is None or not opens(endpoint.credentials, secret):
            return None
        session = endpoint.session()
        return self._live.get(session) or self._refuse_closed(session)

    def _refuse_closed(self, session: str) -> NoReturn:
        raise closed_error(session)

    def _refuse(self, secret: str, kind: str) -> NoReturn:
        session = session_of(secret)
        if session is not None and session in self._closed:
            self._refuse_closed(session)
        given = redact(secret) if session else f"{secret[:8]}…"
        raise GatewayError(
            f"no session has the {kind} {given}" if secret else f"the request has no {kind}",
            status=401,
            code="invalid_api_key",
            fix="use the base_url and api_key that run() was given",
        )
