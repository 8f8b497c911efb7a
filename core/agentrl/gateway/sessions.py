"""Which session a request belongs to."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NoReturn

from agentrl.errors import GatewayError
from agentrl.gateway.credentials import redact, session_of
from agentrl.gateway.exchange import Exchange
from agentrl.gateway.session import Session, closed_error

__all__ = ["Sessions"]

_REMEMBERED = 100_000
"""Ids of closed sessions that are remembered, to say so to a late call."""


class Sessions:
    """The live sessions of a gateway, found by key or by capture token; use it from any thread."""

    def __init__(self) -> None:
        self._live: dict[str, Session] = {}
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

        Raises ``GatewayError``: 404 for a session that has closed or never was, 401 for no credentials
        that open one, or two that open different ones.
        """
        key = exchange.authorization.removeprefix("Bearer ").strip()
        by_key = self.of_key(key)
        if capture is None:
            if by_key is None:
                self._refuse(key, "key")
            return by_key
        session = self._live.get(session_of(capture) or "")
        if session is None or not session.credentials.opens_with_capture(capture):
            self._refuse(capture, "base URL")
        if by_key is None and not exchange.loopback:
            self._refuse(key, "key")
        if by_key not in (None, session):
            raise GatewayError(
                f"the key is that of session {session_of(key)}, the base URL that of session {session.id}",
                status=401,
                code="invalid_api_key",
                fix="use the base_url and api_key of one episode together",
            )
        return session

    def _refuse(self, secret: str, kind: str) -> NoReturn:
        session = session_of(secret)
        if session is not None and session in self._closed:
            raise closed_error(session)
        given = redact(secret) if session else f"{secret[:8]}…"
        raise GatewayError(
            f"no session has the {kind} {given}" if secret else f"the request has no {kind}",
            status=401,
            code="invalid_api_key",
            fix="use the base_url and api_key that run() was given",
        )
