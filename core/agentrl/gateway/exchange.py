"""A request to the gateway and its answer, whichever way they travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["RETRY_HEADER", "Exchange", "Reply", "Service", "retry_number"]

RETRY_HEADER = "x-stainless-retry-count"
"""By this header an SDK marks a request that it sends again, with how often it has tried before."""

_MOST_RETRY_DIGITS = 9


def retry_number(header: str) -> int:
    """How often a request was tried before, by the header that marks retries; 0 for what no SDK would write."""
    number = header.strip()
    return int(number) if number.isascii() and number.isdigit() and len(number) <= _MOST_RETRY_DIGITS else 0


def _never_mind() -> None:
    """What is done about a lost answer where nobody asked to be told."""


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
    lost: Callable[[], None] = field(default=_never_mind, repr=False, compare=False)
    """Called when the client went before it had the last byte: at most once for each time that ``Service.answer``
    has returned this reply, from any thread, and possibly after the session has closed. An answer of which nothing is
    heard has arrived, as far as anybody can tell."""


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
