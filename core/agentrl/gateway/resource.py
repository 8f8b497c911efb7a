"""Resources: what the gateway serves beside the sessions' wire protocols, such as its own description."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from agentrl.errors import GatewayError
from agentrl.gateway.contract import Reply, Route

__all__ = ["Resource", "ResourceRequest"]


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """A request to a resource. Its method is one that the route takes."""

    method: str
    route: Route
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What the braces in the route's path matched."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values by name in lower case, credentials included."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """The JSON object in the body; empty where there is none."""


class Resource(ABC):
    """Some routes that belong to no session. One object answers from any thread, and checks credentials itself."""

    routes: ClassVar[Sequence[Route]]
    """What it serves, as a dialect's routes are."""

    @abstractmethod
    async def answer(self, request: ResourceRequest) -> Reply:
        """Answer one request. Raises ``GatewayError`` for what is refused."""

    @abstractmethod
    def refuse(self, error: GatewayError) -> Reply:
        """Write an error, as ``Dialect.refuse`` does."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """Its part of the OpenAPI document, as ``Dialect.describe`` gives it, with the ``security`` of its own."""
