"""From the engine's thread to the event loops that wait: one wake-up a loop and step."""

from __future__ import annotations

import asyncio
from collections import deque

from agentrl.inference.contract import Chunk

__all__ = ["Post", "Ticket"]

Item = Chunk | BaseException


class Ticket:
    """What one reader waits on: made in the reader's event loop, and used there only."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Hand over a chunk, or the error that ends the completion."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Chunk:
        """The next chunk; raises the error where that is what comes."""
        while not self._items:
            self._waiter = self.loop.create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item


class Post:
    """Collects what a step has for its readers and hands it over. Used by the engine's thread only."""

    def __init__(self) -> None:
        self._boxes: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Item]]] = {}

    def add(self, ticket: Ticket, item: Item) -> None:
        """Have ``item`` handed over by the next ``send``."""
        self._boxes.setdefault(ticket.loop, []).append((ticket, item))

    def send(self) -> list[Ticket]:
        """Wake every loop that has something to read, once. Returns whom nobody can reach: their loop is closed."""
        boxes, self._boxes = self._boxes, {}
        lost: list[Ticket] = []
        for loop, items in boxes.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:
                if not loop.is_closed():
                    raise
                lost += [ticket for ticket, _ in items]
        return lost


def _hand_over(items: list[tuple[Ticket, Item]]) -> None:
    for ticket, item in items:
        ticket.put(item)
