"""What the rollout has said, for the main thread to take."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

from agentrl.worker.protocol import Message

__all__ = ["Inbox"]


class Inbox:
    """Messages from the thread that reads, in their order."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._wake: Callable[[], object] = lambda: None

    def put(self, message: Message) -> None:
        """Add a message, from any thread."""
        self._messages.put(message)
        self._wake()

    def get(self) -> Message:
        """Wait for the next message."""
        return self._messages.get()

    def wake_with(self, wake: Callable[[], object]) -> None:
        """Call ``wake``, now and for every message that comes, to have ``waiting`` emptied."""
        self._wake = wake
        wake()

    def waiting(self) -> Iterator[Message]:
        """The messages that are there."""
        while not self._messages.empty():
            yield self._messages.get_nowait()

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return self._messages.empty()
