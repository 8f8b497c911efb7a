"""What something took: the time that passed, and beside it the CPU of this process and of all that it started."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import psutil

__all__ = ["Taken"]


@dataclass(frozen=True)
class Taken:
    """Seconds. Wall time far beyond CPU is waiting, or other work on the machine."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Taken:
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time() + _of_children())

    def since(self, begun: Taken) -> Taken:
        """From ``begun`` to here."""
        return Taken(self.wall - begun.wall, self.cpu - begun.cpu)

    @classmethod
    def best(cls, rounds: list[Taken]) -> Taken:
        """The least of each."""
        return cls(min(taken.wall for taken in rounds), min(taken.cpu for taken in rounds))


def _of_children() -> float:
    """Of those that have ended, and of those that run."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # It has ended meanwhile.
            continue
        total += times.user + times.system
    return total
