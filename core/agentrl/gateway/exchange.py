"""A request to the gateway and its answer, whichever way they travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Exchange", "Reply", "Service"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request as far as the gateway looks at it."""

    method: str
    path: str = field(repr=False)
    """It may hold a capture token."""
    body: bytes = field(default=b"", repr=False)
    authorization: str = field(default="", repr=False)
    """The ``Authorization`` header."""
    retry: int = 0
    """How often the SDK has tried this request before, by the header that it marks retries with."""
    loopback: bool = True
    """Whether it comes from this machine."""
    in_process: bool = False
    """Whether the answer reaches its caller for certain, without a socket that may break."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; its body is JSON."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


class Service(Protocol):
    """What answers requests, behind a server or an in-process client."""

    @property
    def url(self) -> str:
        """Where it is served; requests to it are its own."""
        ...

    def captures(self, authorization: str) -> bool:
        """Whether a request to anywhere with this ``Authorization`` header is its own too."""
        ...

    def check_size(self, size: int) -> None:
        """Raises ``GatewayError`` for a body of ``size`` bytes that is too large."""
        ...

    async def answer(self, exchange: Exchange) -> Reply:
        """Answer a request. Only cancellation is raised."""
        ...

    def refusal(self, error: Exception) -> Reply:
        """Answer a request that cannot be read."""
        ...
