"""Admission: episodes are started no faster than the engine can serve their calls.

How many calls an engine answers at once is known, and some engines say besides how many requests wait in them; see
``LoadReporting``. While the line of calls that wait is long, further episodes would only make it longer: those that
run would wait more, time out sooner, and be older when they are trained. So an episode waits to start instead. Calls of
episodes that have started are never held back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from agentrl.gateway.traffic import Traffic
from agentrl.inference.contract import EngineLoad

__all__ = ["Admission", "Demand", "default_line", "line_of", "may_start"]

_SHARE = 4
_LOOK_S = 1.0
"""Most seconds between two looks: engines tell of themselves unasked for nothing."""
_BREATH_S = 0.002
"""Fewest seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of an engine at a moment."""

    under_way: int
    """Calls that are not answered yet."""
    expected: int
    """Episodes that have just started and have made no call yet; each is about to."""
    at_once: int
    """How many calls the engine answers at once where nothing else limits it."""
    reported: EngineLoad | None = None
    """What the engine says of itself. It may be a little old, and count requests of others."""


def default_line(at_once: int) -> int:
    """How long the line of an engine may be that answers ``at_once`` calls at once: enough to keep it busy."""
    return max(1, at_once // _SHARE)


def line_of(demand: Demand) -> int:
    """How many calls wait for the engine, or will once the episodes that have just started make theirs.

    An engine whose memory is full answers fewer at once than it could: then those that it says wait do, and whoever
    comes next waits too.
    """
    line = max(0, demand.under_way + demand.expected - demand.at_once)
    waiting = 0 if demand.reported is None else min(demand.reported.waiting, demand.under_way)
    return max(line, waiting + demand.expected if waiting else 0)


def may_start(in_flight: int, demand: Demand, line: int) -> bool:
    """Whether a further episode may start: fewer than ``line`` calls wait, or no other episode is ``in_flight``."""
    return in_flight == 0 or line_of(demand) < max(1, line)


class Admission:
    """Lets episodes start as ``may_start`` says. For one event loop; several dispatches may share it."""

    def __init__(
        self,
        traffic: Traffic,
        at_once: int,
        line: int | None = None,
        reported: Callable[[], EngineLoad | None] = lambda: None,
    ) -> None:
        """``at_once`` and ``reported`` are as in ``Demand``; ``line`` is by default that of ``default_line``."""
        self._traffic = traffic
        self._at_once = at_once
        self._line = default_line(at_once) if line is None else line
        self._reported = reported
        self._starting = 0
        """Episodes that have started and not yet opened a session."""
        self._held = 0
        self._seconds = 0.0

    def demand(self) -> Demand:
        """What is asked of the engine now."""
        expected = self._traffic.expected + self._starting
        return Demand(self._traffic.under_way, expected, self._at_once, self._reported())

    async def admitted(self, in_flight: Callable[[], int]) -> float:
        """Wait until a further episode may start; returns for how many seconds the engine's line held it back.

        ``in_flight`` returns how many episodes of whoever asks are running.
        """
        if self._may(in_flight):
            return 0.0
        began = time.monotonic()
        while not self._may(in_flight):
            await self._less()
        return time.monotonic() - began

    def start(self, held: float | None) -> None:
        """An episode is being started, which was ``held`` back for so many seconds; ``None`` where that is not told."""
        self._starting += 1
        if held:
            self._held += 1
            self._seconds += held

    def started(self) -> None:
        """An episode that was being started opens its session now."""
        self._starting -= 1

    def take(self) -> dict[str, float]:
        """The metrics of the episodes that have started since the call before."""
        taken = {"rollout/held_back": float(self._held), "seconds/held_back": self._seconds}
        self._held, self._seconds = 0, 0.0
        return taken

    def _may(self, in_flight: Callable[[], int]) -> bool:
        return may_start(in_flight(), self.demand(), self._line)

    async def _less(self) -> None:
        """Wait until there is less to do, or for a moment."""
        loop, less = asyncio.get_running_loop(), asyncio.Event()

        def told() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(less.set)

        self._traffic.tell_once(told)
        await asyncio.sleep(_BREATH_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await less.wait()
