"""When an episode waited for the model, when the model answered, and when the agent and its tools worked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode

__all__ = ["Activity", "Stretch", "Timeline", "timeline"]

Activity = Literal["waiting", "sampling", "call", "agent"]
"""``waiting`` is from the arrival of a request to its first token, ``sampling`` from there to its last, ``call`` a call
of which the first token is not known, and ``agent`` all time in which no call is in flight: tools, the agent's own
code and, at the end, the reward."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time with one activity."""

    activity: Activity
    start: float
    """Seconds since the episode's last attempt began."""
    seconds: float
    lane: int = 0
    """The row of its bar: calls that overlap are in several rows."""
    call: int | None = None
    """The index of the call; ``None`` for the agent's own time."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The stretches of an episode's last attempt, in the order of their starts."""

    stretches: tuple[Stretch, ...]
    seconds: float
    """The length of the whole."""
    lanes: int
    is_timed: bool
    """Whether the starts of the calls were recorded. Where they were not, the calls stand one after the other."""

    def total(self, *activities: Activity) -> float:
        """Seconds of these activities, all calls together."""
        return sum(each.seconds for each in self.stretches if each.activity in activities)


def timeline(episode: Episode) -> Timeline:
    """The timeline of ``episode``. Calls without a recorded start stand one after the other, without pauses."""
    is_timed = all(call.started is not None for call in episode.calls)
    starts = [call.started or 0.0 for call in episode.calls] if is_timed else _one_by_one(episode.calls)
    # Clocks of two processes may differ by a little, so that a call seems to end after its episode.
    ends = [start + call.seconds for start, call in zip(starts, episode.calls, strict=True)]
    seconds = max([episode.seconds, *ends])
    stretches: list[Stretch] = []
    free: list[float] = []
    for index in sorted(range(len(starts)), key=lambda index: (starts[index], index)):
        lane = next((lane for lane, until in enumerate(free) if until <= starts[index]), len(free))
        free[lane : lane + 1] = [ends[index]]
        stretches += _of_call(episode.calls[index], index, starts[index], lane)
    if is_timed:
        stretches += _between(zip(starts, ends, strict=True), seconds)
    stretches.sort(key=lambda each: (each.start, each.lane))
    return Timeline(tuple(stretches), seconds, max(1, len(free)), is_timed)


def _one_by_one(calls: Sequence[Call]) -> list[float]:
    starts, now = [], 0.0
    for call in calls:
        starts.append(now)
        now += call.seconds
    return starts


def _of_call(call: Call, index: int, start: float, lane: int) -> list[Stretch]:
    if call.waited is None:
        return [Stretch("call", start, call.seconds, lane, index)]
    waited = min(call.waited, call.seconds)
    return [
        Stretch("waiting", start, waited, lane, index),
        Stretch("sampling", start + waited, call.seconds - waited, lane, index),
    ]


def _between(calls: Iterable[tuple[float, float]], seconds: float) -> list[Stretch]:
    """The time in which no call is in flight."""
    found, now = [], 0.0
    for start, end in sorted(calls):
        if start > now:
            found.append(Stretch("agent", now, start - now))
        now = max(now, end)
    if seconds > now:
        found.append(Stretch("agent", now, seconds - now))
    return found
