"""One request on its way through the engine, and how what is sampled for it reaches its reader."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from agentrl.inference.contract import Chunk, FinishReason, Sampling
from agentrl.inference.engine.cache import Ids
from agentrl.inference.engine.sampler import StopStrings
from agentrl.inference.grammars import GrammarState

__all__ = ["ChunkQueue", "Generation", "Outbox"]

Item = Chunk | BaseException


class ChunkQueue:
    """The chunks of one generation for its reader: made in the reader's event loop, and read there only."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Hand over a chunk, or the error that ends the generation. Called in the reader's loop."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Chunk:
        """Returns the next chunk, or raises the error that ends the generation."""
        while not self._items:
            self._waiter = self.loop.create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item


class Outbox:
    """What a step has for its readers, handed over with one wake-up a loop. Used by the engine's thread only."""

    def __init__(self) -> None:
        self._boxes: dict[asyncio.AbstractEventLoop, list[tuple[ChunkQueue, Item]]] = {}

    def add(self, queue: ChunkQueue, item: Item) -> None:
        """Have ``item`` handed over by the next ``send``."""
        self._boxes.setdefault(queue.loop, []).append((queue, item))

    def send(self) -> list[ChunkQueue]:
        """Hand everything over. Returns the queues whose event loop is closed: their readers are gone."""
        boxes, self._boxes = self._boxes, {}
        lost: list[ChunkQueue] = []
        for loop, items in boxes.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:
                if not loop.is_closed():
                    raise
                lost += [queue for queue, _ in items]
        return lost


def _hand_over(items: list[tuple[ChunkQueue, Item]]) -> None:
    for queue, item in items:
        queue.put(item)


@dataclass(slots=True, eq=False)
class Generation:
    """One request on its way through the engine, filled token by token. Only the engine's thread touches it."""

    queue: ChunkQueue
    sampling: Sampling
    prompt: Ids
    stream: bool
    limit: int
    """The most tokens to sample."""
    stops: StopStrings | None
    grammar: GrammarState | None = None
    epoch: int = -1
    """The engine's count of weights under which its KV was begun; only KV of one epoch is shared."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    sent: int = 0
    """How many of ``ids`` have been delivered."""
    stop_string: str | None = None
    first_token: float | None = None
    """When the first token was sampled, by ``time.monotonic()``."""

    @property
    def length(self) -> int:
        """How many tokens prompt and sampled tokens are so far."""
        return len(self.prompt) + len(self.ids)

    @property
    def tokens(self) -> Ids:
        """Prompt and sampled tokens."""
        return np.concatenate([self.prompt, np.array(self.ids, np.int64)])

    def add(self, token: int, logprob: float, version: int) -> FinishReason | None:
        """Take a sampled token. Returns why the generation ends with it, or ``None`` where it goes on."""
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        if token in self.sampling.stop_ids:
            return "stop"
        if self.stops is not None:
            self.stop_string = self.stops.found(self.ids)
            if self.stop_string is not None:
                return "stop"
        if self.grammar is not None and self.grammar.accept(token):
            return "stop"
        return "length" if len(self.ids) >= self.limit else None

    def chunk(self, finish: FinishReason | None) -> Chunk:
        """Returns what has been sampled since the last chunk; ``finish`` is set on the last one only."""
        new, is_first = slice(self.sent, None), not self.sent
        self.sent = len(self.ids)
        return Chunk(
            ids=tuple(self.ids[new]),
            logprobs=tuple(self.logprobs[new]),
            versions=tuple(self.versions[new]),
            top_logprobs=tuple(self.top_logprobs[new]),
            finish=finish,
            stop_string=self.stop_string,
            first_token=self.first_token if is_first else None,
        )
