"""A limit on how many calls wait for the model, of sessions that people bring.

Nobody can hold such sessions back before they start, as ``agentrl.rollout.admission`` does with episodes, so their
calls are refused while the line is long: with a 429, after which every SDK asks again.
"""

from __future__ import annotations

from collections.abc import Callable

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Completer, Completion, Delta, ModelRequest
from agentrl.gateway.session import Session
from agentrl.inference.contract import EngineLoad

__all__ = ["QueueLimit"]

_AGAIN_S = 1.0
"""Seconds after which a refused client is told to ask again."""


class QueueLimit:
    """A completer that passes calls on to another one, unless too many are under way already."""

    def __init__(
        self,
        completer: Completer,
        *,
        running: int,
        waiting: int,
        reported: Callable[[], EngineLoad | None] = lambda: None,
    ) -> None:
        """``running`` is how many calls the model answers at once, ``waiting`` how many more may wait for it.

        ``reported`` returns what the engine says of itself: one whose memory is full answers fewer at once.
        """
        self._completer = completer
        self._running = running
        self._waiting = waiting
        self._reported = reported
        self._under_way: set[object] = set()

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
        call = object()
        self._under_way.add(call)  # Before it is counted: without a lock, no two calls can take one place.
        try:
            if self._is_full():
                raise GatewayError(
                    f"{self._waiting} calls wait for the model, as many as there may be",
                    status=429,
                    code="too_many_calls",
                    fix="ask again later, or start the service with a larger --max-waiting (serve.max_waiting)",
                    retry_after=_AGAIN_S,
                )
            return await self._completer.complete(session, request, overridden, tell)
        finally:
            self._under_way.discard(call)

    def _is_full(self) -> bool:
        under_way = len(self._under_way)
        if under_way > self._running + self._waiting:
            return True
        load = self._reported()
        return load is not None and min(load.waiting, under_way) > self._waiting

    def count(self, session: Session, request: ModelRequest) -> int:
        """See ``Completer``."""
        return self._completer.count(session, request)
