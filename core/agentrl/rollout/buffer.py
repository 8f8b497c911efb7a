"""The buffer: the groups of a run between their start and the end of their step, kept within the staleness bound.

It is a state machine over the rule of ``rollout/staleness.py``, and owns no task and no clock. A group goes through::

    start ──> running ── finish ──> finished ── take ──> in training ── served ──> gone
                            │           │
                        left out      stale          its slot is free at once

Whoever rolls groups out asks ``may_start`` before every start. Whoever trains calls ``take`` until it has a step's
groups, and ``served`` when the engine has the weights that the step made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agentrl.rollout.contract import Group
from agentrl.rollout.staleness import Candidate, OnStale, StalenessBound

__all__ = ["GroupBuffer", "Taken"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step consumes: the groups that it trains, and those that have left the buffer without training.

    Each is sorted by ordinal.
    """

    groups: tuple[Group, ...]
    """The groups that the step trains: as many as the bound's ``per_step`` where they are rolled out, and where people
    bring sessions as many as hold that many sessions."""
    left_out: tuple[Group, ...] = ()
    """Groups that finished since the step before, did not qualify for training, and were replaced by others."""
    stale: tuple[Group, ...] = ()
    """Groups that were found beyond the bound since the step before, and that no step trains."""


class _Finished(NamedTuple):
    group: Group
    oldest: int | None


class GroupBuffer:
    """Which groups are outstanding, and which of them the next step takes.

    Calls that do not fit the state of a group raise ``ValueError``. No call costs more than the number of groups that
    are outstanding, and only ``take`` and ``served``, once a step, cost that much.
    """

    def __init__(self, bound: StalenessBound, on_stale: OnStale, version: int = 0, *, replaceable: int = 0) -> None:
        """``version`` is that of the weights which the engine serves, and which the first step trains.

        With ``on_stale`` ``wait`` a step waits for groups that it would leave beyond ``bound``. With the others it
        waits for none; a group that is beyond the bound when it could be taken is taken all the same under ``mask``,
        and is stale under ``drop``. A step may replace ``replaceable`` groups that do not qualify for training.
        """
        self._bound = bound
        self._on_stale = on_stale
        self._replaceable = replaceable
        self._version = version
        self._outstanding: dict[int, None] = {}
        self._running: dict[int, int] = {}
        self._running_of: Counter[int] = Counter()
        """How many groups are running, by the version of the oldest token that they can have."""
        self._finished: dict[int, _Finished] = {}
        self._training: tuple[int, ...] = ()
        self._left_out: dict[int, _Finished] = {}
        self._stale: list[Group] = []

    @property
    def version(self) -> int:
        """The version that is served, which is that of the step to come or in progress."""
        return self._version

    @property
    def outstanding(self) -> Collection[int]:
        """Ordinals of the groups that hold a slot: running, finished, or in training. A view, which is not copied."""
        return self._outstanding.keys()

    @property
    def running(self) -> Mapping[int, int]:
        """The groups that have started and not finished: ordinal to the version of the oldest token they can have.

        A view, which is not copied.
        """
        return self._running

    @property
    def finished(self) -> tuple[int, ...]:
        """Ordinals of the finished groups that no step has taken yet, in rising order."""
        return tuple(sorted(self._finished))

    @property
    def in_training(self) -> tuple[int, ...]:
        """Ordinals of the groups of the step in progress, in rising order; empty between steps."""
        return self._training

    def may_start(self) -> bool:
        """Whether the rule admits another group now."""
        return self._bound.may_start(len(self._outstanding))

    def start(self, ordinal: int, *, oldest: int | None = None) -> None:
        """The group ``ordinal`` starts under the served version, and reserves a slot.

        ``oldest`` is given for a group of which episodes exist already, as after a resume: the version of their oldest
        token. Such a group is let in without a free slot too, since a lower bound than before may leave it none; where
        no step can train it within the bound any more, it is stale.
        """
        if ordinal in self._outstanding:
            raise ValueError(f"group {ordinal} is outstanding already")
        if oldest is None and not self.may_start():
            raise ValueError(f"group {ordinal} has no slot: {len(self._outstanding)} groups are outstanding")
        version = self._version if oldest is None else oldest
        self._outstanding[ordinal] = None
        self._running[ordinal] = version
        self._running_of[version] += 1

    def finish(self, group: Group, oldest: int | None, qualifies: bool) -> None:
        """``group``, which was running, has finished; ``oldest`` is the version of the oldest token sampled in it.

        ``oldest`` is ``None`` for a group without sampled tokens, which is never stale. A group that does not qualify
        for training frees its slot, and comes with the next step's ``Taken.left_out``. Of more of them than a step may
        replace, those of the lowest ordinals are left out, in whatever order they finish: the others are trained.
        """
        ordinal, reserved = group.ordinal, self._end(group.ordinal)
        if not qualifies and self._replaceable:
            del self._outstanding[ordinal]
            self._left_out[ordinal] = _Finished(group, oldest)
            if len(self._left_out) <= self._replaceable:
                return
            # The slot is one for a group as old as this one: an older group might find no step that is early enough.
            fitting = (each for each, (_, age) in self._left_out.items() if age is None or age >= reserved)
            ordinal = max(fitting, default=ordinal)
            group, oldest = self._left_out.pop(ordinal)
            self._outstanding[ordinal] = None
        self._finished[ordinal] = _Finished(group, oldest)
        self._drop_if_stale(ordinal)

    def take(self) -> Taken | None:
        """The groups of the step at the present version; ``None`` where the step has to wait for more to finish.

        They stay outstanding until ``served``.
        """
        if self._training:
            raise ValueError(f"the step at version {self._version} is in progress")
        waited_for = self._running_of if self._on_stale == "wait" else {}
        if self._bound.has_to_wait(self._version, len(self._finished), waited_for):
            return None
        candidates = (Candidate(ordinal, each.oldest) for ordinal, each in self._finished.items())
        chosen = self._bound.choose(self._version, candidates, waited_for)
        assert chosen is not None  # The rule has just said that nothing is waited for.
        self._training = chosen
        groups = tuple(self._finished.pop(ordinal).group for ordinal in chosen)
        left_out = tuple(self._left_out.pop(ordinal).group for ordinal in sorted(self._left_out))
        stale = tuple(sorted(self._stale, key=lambda group: group.ordinal))
        self._stale.clear()
        return Taken(groups, left_out, stale)

    def served(self, version: int) -> None:
        """The engine serves ``version`` from now on, the step in progress is over, and its groups' slots are free."""
        if version < self._version:
            raise ValueError(f"version {version} cannot follow version {self._version}")
        self._version = version
        for ordinal in self._training:
            del self._outstanding[ordinal]
        self._training = ()
        for ordinal in list(self._finished):
            self._drop_if_stale(ordinal)

    def _end(self, ordinal: int) -> int:
        """The group ``ordinal`` is running no more; returns the version that it had reserved."""
        if ordinal not in self._running:
            raise ValueError(f"group {ordinal} is not running")
        version = self._running.pop(ordinal)
        self._running_of[version] -= 1
        if not self._running_of[version]:
            del self._running_of[version]
        return version

    def _drop_if_stale(self, ordinal: int) -> None:
        """A slot that a stale group held until the next step could be the one that the step is waiting for.

        Under ``wait`` no group becomes stale, unless the run goes on with a lower bound than it had, or has gone back
        to a better checkpoint, which takes a version number of its own.
        """
        group, oldest = self._finished[ordinal]
        if self._on_stale != "mask" and oldest is not None and self._bound.deadline(oldest) < self._version:
            del self._finished[ordinal]
            del self._outstanding[ordinal]
            self._stale.append(group)
