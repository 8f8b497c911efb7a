"""Which sessions of a service are compared with each other, and when a group of them is whole.

A state machine without a lock or a clock::

    open ──> session of a group ── ended ──┐
                                           ├──> whole, once no session can join and none is open
    full, closed or expired: none joins ───┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentrl.rollout.contract import EpisodeKey, Phase

__all__ = ["ClosedGroup", "SessionGroups"]


@dataclass(frozen=True, slots=True)
class ClosedGroup:
    """What there was of a group when it was closed."""

    sessions: int = 0
    """How many had been opened in it."""
    open: int = 0
    """How many of these have not ended."""
    whole: tuple[EpisodeKey, ...] = ()
    """A key of each phase in which it is whole by that."""


@dataclass
class _Group:
    phase: Phase
    ordinal: int
    name: str | None
    opened: int = 0
    open: int = 0
    joinable: bool = True
    used: float = 0.0
    """When a session of it was opened or ended last."""

    @property
    def key(self) -> EpisodeKey:
        """That of its first session."""
        return EpisodeKey(self.phase, self.ordinal, self.ordinal, 0)


class SessionGroups:
    """Numbers groups and the sessions in them; those of a phase that were opened under one name are one group.

    A session that is opened without a name has a group to itself. Where groups have a ``size``, a session that is
    opened when its group is full, was closed or has expired begins another one of the same name. ``size`` is ``None``
    where nobody waits for groups; they are then as large as they become, and do not expire.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._groups: dict[tuple[Phase, int], _Group] = {}
        self._named: dict[tuple[Phase, str], _Group] = {}
        self._ordinals: dict[Phase, int] = {}

    def open(self, phase: Phase, name: str | None, now: float) -> EpisodeKey:
        """The key of a session that is opened at the time ``now``."""
        group = None if name is None else self._named.get((phase, name))
        group = self._begin(phase, name) if group is None else group
        sample = group.opened
        group.opened, group.open, group.used = group.opened + 1, group.open + 1, now
        if name is None or group.opened == self.size:
            self._seal(group)
        return EpisodeKey(phase, group.ordinal, group.ordinal, sample)

    def ended(self, key: EpisodeKey, now: float) -> bool:
        """The session ``key`` has ended. Returns whether its group is whole now."""
        group = self._groups[key.phase, key.group]
        group.open, group.used = group.open - 1, now
        return self._is_whole(group)

    def close(self, name: str) -> ClosedGroup:
        """Let no session join the groups of this ``name`` any more. A name that has no group changes nothing."""
        groups = [group for (_, each), group in self._named.items() if each == name]
        for group in groups:
            self._seal(group)
        whole = tuple(group.key for group in groups if self._is_whole(group))
        return ClosedGroup(sum(each.opened for each in groups), sum(each.open for each in groups), whole)

    def expire(self, since: float) -> Iterator[EpisodeKey]:
        """A key of each group that is whole because no session of it is open, and none has been from ``since`` on."""
        if self.size is None:
            return
        for group in list(self._named.values()):
            if not group.open and group.used <= since:
                self._seal(group)
                self._is_whole(group)
                yield group.key

    def _begin(self, phase: Phase, name: str | None) -> _Group:
        ordinal = self._ordinals.get(phase, 0)
        self._ordinals[phase] = ordinal + 1
        group = self._groups[phase, ordinal] = _Group(phase, ordinal, name)
        if name is not None:
            self._named[phase, name] = group
        return group

    def _seal(self, group: _Group) -> None:
        group.joinable = False
        if group.name is not None:
            self._named.pop((group.phase, group.name), None)

    def _is_whole(self, group: _Group) -> bool:
        """Whether it is whole; it is forgotten then."""
        if group.joinable or group.open:
            return False
        del self._groups[group.phase, group.ordinal]
        return True
