"""The rule of staleness: which groups may start, and which of the finished ones a step trains.

Versions count optimiser steps: the step at version ``v`` trains groups and makes version ``v + 1``. The staleness of a
group is that ``v`` minus the version of the oldest token sampled in it, and may not exceed ``max_staleness``, K. So a
group whose oldest token is, or can become, of version ``d`` is trained by the step at version ``d + K`` at the latest:
that is its *deadline*.

A group is *outstanding* from its start to the end of its step, when weights that were trained on it are served. Every
step takes ``per_step`` groups, B. At version ``v`` the steps at ``v`` to ``v + K`` are left for whatever is
outstanding, so it never exceeds ``(K + 1) * B`` groups; and of groups with a deadline up to ``D`` no more may be left
over by the step at ``v`` than the steps at ``v + 1`` to ``D`` take, for every ``D``. This is the schedule of jobs of
equal length with deadlines: it exists exactly when no deadline is overbooked, and taking the earliest deadlines first
finds it. The rule therefore refuses a start or a choice only where no order in which the other groups finish could
bring all groups in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["Candidate", "OnStale", "StalenessBound"]

OnStale = Literal["wait", "mask", "drop"]
"""What happens to a group that would cross the bound: the learner waits for it, the tokens beyond the bound are left
out of the loss, or the group is dropped and its task comes again."""


class Candidate(NamedTuple):
    """A finished group that a step may take."""

    ordinal: int
    oldest: int | None
    """The version of its oldest sampled token; ``None`` where it has none, so that it has no deadline either."""


@dataclass(frozen=True, slots=True)
class StalenessBound:
    """The rule for one run."""

    max_staleness: int
    """K, in versions: 0 is synchronous training."""
    per_step: int
    """B, the number of groups that a step trains."""

    def __post_init__(self) -> None:
        if self.max_staleness < 0 or self.per_step < 1:
            raise ValueError(f"{self}: the staleness is 0 or more, and a step trains 1 group or more")

    @property
    def slots(self) -> int:
        """How many groups may be outstanding at once: those of the steps within the bound."""
        return (self.max_staleness + 1) * self.per_step

    def may_start(self, outstanding: int) -> bool:
        """Whether another group may start beside ``outstanding`` ones, those in training included.

        It holds for a group that starts under the weights that are served, so that its deadline is the last of all.
        """
        return outstanding < self.slots

    def deadline(self, oldest: int) -> int:
        """The version at which a group is trained at the latest, where its oldest token is of version ``oldest``."""
        return oldest + self.max_staleness

    def has_to_wait(self, version: int, finished: int, running: Mapping[int, int]) -> bool:
        """Whether the step at ``version`` cannot take ``per_step`` of ``finished`` groups yet.

        ``running`` counts the groups that have not finished and are waited for, by the version of the oldest token
        that they have or can have. The step waits where it would leave more of them behind than later steps can train
        in time. The cost does not grow with the number of groups.
        """
        if finished < self.per_step:
            return True
        due = 0
        for oldest in sorted(running):
            due += running[oldest]
            if due > self._later(version, self.deadline(oldest)):
                return True
        return False

    def choose(self, version: int, finished: Iterable[Candidate], running: Mapping[int, int]) -> tuple[int, ...] | None:
        """The ordinals, in rising order, of the ``per_step`` groups that the step at ``version`` takes.

        First come those that have to be taken now for the rest to be trained in time, by deadline, then by ordinal;
        the others are those of the lowest ordinals. ``running`` is as in ``has_to_wait``: pass an empty one where
        nothing is waited for. Returns ``None`` where the step has to wait for more groups to finish.
        """
        candidates = list(finished)
        if self.has_to_wait(version, len(candidates), running):
            return None
        dated = sorted((oldest, ordinal) for ordinal, oldest in candidates if oldest is not None)
        required = self._required(version, [oldest for oldest, _ in dated], running)
        taken = [ordinal for _, ordinal in dated[:required]]
        rest = [ordinal for _, ordinal in dated[required:]]
        rest += [ordinal for ordinal, oldest in candidates if oldest is None]
        return tuple(sorted(taken + sorted(rest)[: self.per_step - required]))

    def _required(self, version: int, finished: list[int], running: Mapping[int, int]) -> int:
        """How many of the oldest ``finished`` groups, given by rising version, the step cannot leave to later ones."""
        required = due = begun = 0
        for oldest in sorted({*finished, *running}):
            while begun < len(finished) and finished[begun] <= oldest:
                begun += 1
            due += running.get(oldest, 0)
            required = max(required, begun + due - self._later(version, self.deadline(oldest)))
        # More than a step takes are due only where the bound was lowered, or where nothing is waited for.
        return min(required, begun, self.per_step)

    def _later(self, version: int, deadline: int) -> int:
        """How many groups the steps after the one at ``version`` can train, up to the step at ``deadline``."""
        return max(0, deadline - version) * self.per_step
