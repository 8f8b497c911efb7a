"""Groups of sessions that people bring, between their end and the step that trains them.

Nobody can be asked to start a session, or to hurry one, so there are no slots to reserve as in ``rollout/buffer.py``: a
step is due once enough rewarded sessions are there, and what has become too old meanwhile is masked or dropped. It owns
no task and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentrl.rollout.buffer import Taken
from agentrl.rollout.contract import Episode, Group

__all__ = ["SessionBuffer"]


@dataclass(frozen=True, slots=True)
class _Waiting:
    group: Group
    sessions: int
    """How many of its sessions count for a step."""
    oldest: int
    newest: int


class SessionBuffer:
    """Which groups of sessions the next step takes."""

    def __init__(self, per_step: int, max_staleness: int, on_stale: Literal["mask", "drop"], version: int = 0) -> None:
        """A step is due at ``per_step`` sessions that have a reward and sampled tokens.

        ``version`` is that of the weights which are served, and which the first step trains. A group is stale where
        the weights that a step would train are more than ``max_staleness`` versions newer than its oldest token; with
        ``mask``, than its newest token, since only that leaves nothing to be trained.
        """
        self._per_step = per_step
        self._max_staleness = max_staleness
        self._on_stale = on_stale
        self._version = version
        self._waiting: list[_Waiting] = []
        self._left_out: list[Group] = []
        self._stale: list[Group] = []
        self._next = 0

    @property
    def version(self) -> int:
        """The version that is served, which is that of the step to come or in progress."""
        return self._version

    @property
    def sessions(self) -> int:
        """How many sessions that count for a step are waiting for one."""
        return sum(each.sessions for each in self._waiting)

    @property
    def next(self) -> int:
        """One more than the highest ordinal of a group that has left."""
        return self._next

    def add(self, group: Group) -> None:
        """All sessions of ``group`` have ended. One without a rewarded session trains nothing and leaves at once."""
        if all(episode.outcome != "rewarded" for episode in group.episodes):
            self._left_out.append(group)
            return
        versions = _versions(group)
        oldest, newest = min(versions, default=self._version), max(versions, default=self._version)
        self._waiting.append(_Waiting(group, sum(map(_counts, group.episodes)), oldest, newest))
        self._drop_stale()

    def take(self) -> Taken | None:
        """The groups of the step at the present version, whole and in the order in which they ended.

        They are as many as it takes to have ``per_step`` sessions that count; ``None`` where there are not so many.
        """
        count = taken = 0
        while count < self._per_step and taken < len(self._waiting):
            count, taken = count + self._waiting[taken].sessions, taken + 1
        if count < self._per_step:
            return None
        groups = [each.group for each in self._waiting[:taken]]
        made = Taken(_sorted(groups), _sorted(self._left_out), _sorted(self._stale))
        self._waiting, self._left_out, self._stale = self._waiting[taken:], [], []
        ordinals = [group.ordinal for group in (*made.groups, *made.left_out, *made.stale)]
        self._next = max(self._next, *(ordinal + 1 for ordinal in ordinals))
        return made

    def served(self, version: int) -> None:
        """The step in progress is over, and ``version`` is served from now on."""
        if version < self._version:
            raise ValueError(f"version {version} cannot follow version {self._version}")
        self._version = version
        self._drop_stale()

    def _drop_stale(self) -> None:
        bound = self._version - self._max_staleness
        stale = [each for each in self._waiting if (each.newest if self._on_stale == "mask" else each.oldest) < bound]
        if stale:
            self._stale += [each.group for each in stale]
            self._waiting = [each for each in self._waiting if not any(each is old for old in stale)]


def _versions(group: Group) -> list[int]:
    """The oldest and the newest version of each completion of its rewarded sessions."""
    trees = (episode.tree for episode in group.episodes if episode.outcome == "rewarded")
    sampled = [span.sampled for tree in trees for span in tree.spans if span.sampled is not None]
    return [each for span in sampled if span.versions for each in (min(span.versions), max(span.versions))]


def _counts(episode: Episode) -> bool:
    """Whether something of it can be trained: it has a reward, and tokens that were sampled."""
    return episode.outcome == "rewarded" and any(span.sampled is not None for span in episode.tree.spans)


def _sorted(groups: list[Group]) -> tuple[Group, ...]:
    return tuple(sorted(groups, key=lambda group: group.ordinal))
