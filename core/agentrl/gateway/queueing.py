"""A limit on how many calls wait for the model."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Completer, Completion, Delta, ModelRequest
from agentrl.gateway.session import Session

__all__ = ["QueueLimit"]

_AGAIN_S = 1.0
"""Seconds after which a refused client is told to ask again."""


class QueueLimit:
    """A completer that passes calls on to another one, unless too many are under way already."""

    def __init__(self, completer: Completer, *, running: int, waiting: int) -> None:
        """``running`` is how many calls the model answers at once, ``waiting`` how many more may wait for it."""
        self._completer = completer
        self._most = running + waiting
        self._waiting = waiting
        self._under_way = 0
        self._lock = threading.Lock()

    @property
    def relays(self) -> bool:
        """See ``Completer``."""
        return self._completer.relays

    @property
    def context_length(self) -> int | None:
        """See ``Completer``."""
        return self._completer.context_length

    async def complete(
        self,
        session: Session,
        request: ModelRequest,
        overridden: tuple[str, ...] = (),
        tell: Callable[[Delta], None] | None = None,
    ) -> Completion:
        """See ``Completer``. Raises ``GatewayError`` (429) where the queue is full."""
        with self._lock:
            if self._under_way >= self._most:
                raise GatewayError(
                    f"{self._waiting} calls wait for the model, as many as there may be",
                    status=429,
                    code="too_many_calls",
                    fix="ask again later, or start the service with a larger --max-waiting (serve.max_waiting)",
                    retry_after=_AGAIN_S,
                )
            self._under_way += 1
        try:
            return await self._completer.complete(session, request, overridden, tell)
        finally:
            with self._lock:
                self._under_way -= 1

    def count(self, session: Session, request: ModelRequest) -> int:
        """See ``Completer``."""
        return self._completer.count(session, request)
