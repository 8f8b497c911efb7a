"""The load of the servers: how many requests they sample and how many wait in them, as their metrics say.

A server whose KV cache is full samples fewer requests at once than it may, and only it knows. It is asked when somebody
wants to know, and then not again for a moment: a rollout that is not held back costs its servers nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Sequence

from agentrl import BackendError
from agentrl.inference.contract import EngineLoad
from agentrl_vllm.client import Client

__all__ = ["LoadReports", "read_load"]

_GAUGE = re.compile(r"^vllm:num_requests_(running|waiting)(?:{.*})? (\S+)$", re.MULTILINE)
_EVERY_S = 0.5
"""Fewest seconds between two questions to the servers."""
_ANSWER_S = 5.0
_KNOWN_S = 10.0
"""Seconds for which an answer counts while no newer one comes."""


def read_load(metrics: object) -> EngineLoad | None:
    """Returns the load in what a server answers at ``/metrics``; ``None`` where it says nothing of it."""
    found = _GAUGE.findall(metrics) if isinstance(metrics, str) else []
    totals = {"running": 0.0, "waiting": 0.0}
    for name, value in found:
        with contextlib.suppress(ValueError):
            totals[name] += float(value)
    return EngineLoad(int(totals["running"]), int(totals["waiting"])) if found else None


class LoadReports:
    """Asks servers for their load. Made on the event loop that asks them."""

    def __init__(
        self, client: Client, urls: Callable[[], Sequence[str]], now: Callable[[], float] = time.monotonic
    ) -> None:
        """``urls`` returns those of the servers that are well."""
        self._client = client
        self._urls = urls
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._asked = float("-inf")
        self._known: tuple[float, EngineLoad] | None = None
        self._asking: asyncio.Task[None] | None = None

    def load(self) -> EngineLoad | None:
        """Returns what the servers said last, all together, and has them asked again; see ``LoadReporting``."""
        now = self._now()
        if now - self._asked >= _EVERY_S:
            self._asked = now
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                self._loop.call_soon_threadsafe(self._ask)
        known = self._known
        return known[1] if known is not None and now - known[0] < _KNOWN_S else None

    def close(self) -> None:
        """Ask no more. Called on the event loop."""
        self._asked = float("inf")
        if self._asking is not None:
            self._asking.cancel()

    def _ask(self) -> None:
        if self._asked < float("inf") and (self._asking is None or self._asking.done()):
            self._asking = self._loop.create_task(self._answers())

    async def _answers(self) -> None:
        answers = await asyncio.gather(*map(self._answer, self._urls()))
        loads = [load for load in answers if load is not None]
        if loads:
            total = EngineLoad(sum(each.running for each in loads), sum(each.waiting for each in loads))
            self._known = self._now(), total

    async def _answer(self, url: str) -> EngineLoad | None:
        try:
            return read_load(await self._client.get(url, "/metrics", seconds=_ANSWER_S))
        except (
            BackendError
        ):  # It is gone or keeps no metrics; requests will tell, or what is known without them will do.
            return None
