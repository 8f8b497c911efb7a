"""What a worker passes to its agent for an episode."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from agentrl.agents.binding import BoundAgent
from agentrl.clients import Unclosable, UnclosableSync, client_library

__all__ = ["Connections"]


class Connections:
    """Adds the HTTP client that all episodes of a worker share, made when the first one takes it.

    It is async for an async agent; any number of its calls may be under way. It behaves like the client that the
    SDK makes for itself: ten minutes for an answer, and proxies from the environment, for what an agent's tools
    send elsewhere (the variables of the process name the gateway's host among those that are reached directly).
    """

    def __init__(self, agent: BoundAgent) -> None:
        self._agent = agent
        self._client: Any = None
        self._lock = threading.Lock()

    def of(self, episode: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments for an episode whose ``base_url``, ``api_key`` and ``model`` are given."""
        return {**episode, "http_client": self._shared()} if self._agent.takes("http_client") else dict(episode)

    def _shared(self) -> Any:
        with self._lock:
            self._client = self._client or _client(is_async=self._agent.is_async)
            return self._client


def _client(*, is_async: bool) -> Any:
    library = client_library()
    bases = (Unclosable, library.AsyncClient) if is_async else (UnclosableSync, library.Client)
    limits = library.Limits(max_connections=None, max_keepalive_connections=None)
    return type("SharedClient", bases, {})(limits=limits, timeout=library.Timeout(600, connect=5))
