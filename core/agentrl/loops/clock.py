"""Time that does not pass while the whole process is paused: stopped by Ctrl-Z, or frozen with its container."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

__all__ = ["TICK_S", "AwakeClock", "Ticker"]

TICK_S = 0.25
"""How often somebody should ``tick``."""

_LATE_S = 1.0
"""How long a tick of a process that runs may keep waiting: a busy machine is no pause."""


class AwakeClock:
    """Seconds of the monotonic clock, without those in which nothing in this process could run.

    A pause cannot be asked for, it shows itself: a tick that should have come long ago has not, and the processor has
    done nothing for us meanwhile. So between two ticks the clock goes on by one second at most, and a tick that comes
    later adds the rest only where this process was at work, as in a call that lets no other thread run.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
        asleep: Callable[[], bool] = lambda: False,
    ) -> None:
        """``used`` is the processor time of this process, and ``asleep`` whether time stands still for another
        reason, such as the pause of a process that everybody here waits for."""
        self._monotonic = monotonic
        self._used = used
        self._asleep = asleep
        self._paused = 0.0
        self._latest = math.inf
        """What the clock does not pass before the next tick; nothing where nobody ticks yet."""
        self._ticked = 0.0
        self._used_then = 0.0

    def time(self) -> float:
        """Now; may be asked from any thread."""
        return min(self._monotonic() - self._paused, self._latest)

    def start(self) -> None:
        """Begin to look for pauses: from now on ``tick`` is called every ``TICK_S`` seconds, by one thread."""
        self._ticked, self._used_then = self._monotonic(), self._used()
        self._latest = self._ticked - self._paused + _LATE_S

    def tick(self) -> None:
        """Somebody is awake."""
        now, used, asleep = self._monotonic(), self._used(), self._asleep()
        gap, worked = now - self._ticked, used - self._used_then
        self._ticked, self._used_then = now, used
        if asleep or (gap > _LATE_S and worked < gap / 2):
            self._paused = now - self.time()
        self._latest = self.time() if asleep else now - self._paused + _LATE_S

    def stop(self) -> None:
        """Nobody ticks any more."""
        self._latest = math.inf


class Ticker:
    """A thread that has a clock look for pauses, until it is stopped."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._stopped = threading.Event()
        clock.start()
        threading.Thread(target=self._tick, name="agentrl-clock", daemon=True).start()

    def stop(self) -> None:
        """End the thread; it is not waited for."""
        self._stopped.set()

    def _tick(self) -> None:
        while not self._stopped.wait(TICK_S):
            self._clock.tick()
        self._clock.stop()
