"""What a replica needs of its server, whoever started that."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Serving"]


class Serving(Protocol):
    """A server."""

    @property
    def ours(self) -> bool:
        """Whether it was started here, rather than found where it runs."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def ending(self) -> str: ...
    def last_lines(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
