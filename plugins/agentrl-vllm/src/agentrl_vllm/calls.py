"""Calls that are not waited for to their end, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["until_set"]

T = TypeVar("T")


async def until_set(event: asyncio.Event, call: Awaitable[T]) -> asyncio.Future[T]:
    """``call`` as a future that has ended: by itself, or cancelled where ``event`` was set before."""
    asking, waiting = asyncio.ensure_future(call), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([asking, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (asking, waiting):
            task.cancel()
        await asyncio.gather(asking, waiting, return_exceptions=True)
    return asking
