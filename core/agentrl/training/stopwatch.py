"""A stopwatch for the parts of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the wall-clock seconds of named parts of a step between two readings.

    For one thread. Parts may nest, and those of several tasks may overlap; each counts in full when it ends.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``seconds/NAME``, also where it raises."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    def take(self, *names: str) -> dict[str, float]:
        """The seconds since the last reading, as metrics: ``{"seconds/rollout": 1.2, …}``.

        With ``names`` those of these parts alone; the others go on to the next reading.
        """
        taken = self.read(*names)
        for name in names or tuple(self._seconds):
            self._seconds.pop(name, None)
        return taken

    def read(self, *names: str) -> dict[str, float]:
        """As ``take``, and the seconds stay for the next reading too."""
        return {f"seconds/{name}": seconds for name, seconds in self._seconds.items() if not names or name in names}
