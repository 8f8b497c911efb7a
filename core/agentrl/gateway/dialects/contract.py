"""What a dialect is: one wire protocol, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from agentrl.errors import GatewayError
from agentrl.gateway.request import Completion, ModelRequest


class Dialect(Protocol):
    """Translates between a wire protocol and the gateway's own terms. Holds no state of a request."""

    path: str
    """Where requests are posted, below the base URL: ``/chat/completions``."""

    def override(self, body: Mapping[str, Any], override: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A request's body under ``rollout.override``, and the fields of it that were replaced or dropped.

        Raises ``GatewayError`` (400) for a field that an override cannot touch.
        """
        ...

    def parse(self, body: Mapping[str, Any]) -> ModelRequest:
        """A request's body, checked. Raises ``GatewayError`` (400) for what is wrong or cannot be done."""
        ...

    def respond(self, request: ModelRequest, completion: Completion) -> bytes:
        """The response body."""
        ...

    def refuse(self, error: GatewayError) -> bytes:
        """The body that reports an error."""
        ...
