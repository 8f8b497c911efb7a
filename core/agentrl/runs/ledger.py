"""The ledger: what became of every episode that was started for training; none is missing and none counts twice.

For a step, and for a whole run::

    received = trained + without difference + filtered + rejected + failed + stale + over-long + constrained
               + without tokens + unfinished

Episodes are received by the step that takes their group, whatever it does with it; those that no step has taken when a
run ends are unfinished. ``agentrl.rollout.contract.Fate`` says what each word means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, get_args

from agentrl.rollout.contract import Episode, Fate, Group

__all__ = ["Ledger", "step_ledger"]

_FATES: Final[tuple[Fate, ...]] = get_args(Fate)
_RECEIVED, _FAILED = "ledger/received", "ledger/failed"
_UNKNOWN = "unknown"
_WORDS: Final[Mapping[Fate, str]] = {
    "without_difference": "without difference",
    "over_long": "longer than a pass",
    "constrained": "wholly constrained",
    "without_tokens": "without tokens",
}
"""How a fate is written where its name is not its word."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """How many episodes met each fate, of a step or of several.

    Raises ``RuntimeError`` where the numbers do not add up: an episode was lost or counted twice, which is a mistake in
    agentrl and in nobody's agent.
    """

    received: int = 0
    """How many episodes there were, counted where they came in."""
    fates: Mapping[Fate, int] = field(default_factory=dict)
    """How many met each fate, counted where that was decided; a fate that none met may be missing."""
    failed_by: Mapping[str, int] = field(default_factory=dict)
    """The failed ones by the side at fault."""

    def __post_init__(self) -> None:
        total = sum(self.fates.values())
        if total != self.received or min(self.fates.values(), default=0) < 0:
            raise RuntimeError(f"{self.received} episodes were received, and the fates of {total} are known: {self}")
        if (by_side := sum(self.failed_by.values())) != self.count("failed"):
            raise RuntimeError(f"{self.count('failed')} episodes failed, and {by_side} did so by some side: {self}")

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            self.received + other.received,
            Counter(self.fates) + Counter(other.fates),
            Counter(self.failed_by) + Counter(other.failed_by),
        )

    def count(self, fate: Fate) -> int:
        """How many episodes met ``fate``."""
        return self.fates.get(fate, 0)

    @property
    def all_but_trained(self) -> int:
        """How many episodes met any other fate than to be trained."""
        return self.received - self.count("trained")

    def ended(self, started: int) -> Ledger:
        """The ledger of a run that has ended: of the ``started`` episodes, those in no step are unfinished.

        Raises ``RuntimeError`` where more were received than started.
        """
        left = started - self.received
        return Ledger(started, {**self.fates, "unfinished": self.count("unfinished") + left}, self.failed_by)

    def metrics(self) -> dict[str, float]:
        """The metrics of a step: every fate but ``unfinished``, which only a run's end knows, and failures by side."""
        counted = {f"ledger/{fate}": float(self.count(fate)) for fate in _FATES if fate != "unfinished"}
        by_side = {f"{_FAILED}/{side}": float(count) for side, count in sorted(self.failed_by.items())}
        return {_RECEIVED: float(self.received), **counted, **by_side}

    @classmethod
    def of_metrics(cls, metrics: Mapping[str, float | None]) -> Ledger:
        """The ledger that ``metrics`` gave, from a step's metrics; an empty one where they have none."""
        told = {name: int(value) for name, value in metrics.items() if name.startswith("ledger/") and value}
        sides = {name.removeprefix(f"{_FAILED}/"): n for name, n in told.items() if name.startswith(f"{_FAILED}/")}
        return cls(told.get(_RECEIVED, 0), {fate: told.get(f"ledger/{fate}", 0) for fate in _FATES}, sides)

    def to_json(self) -> dict[str, Any]:
        """All counts by name, and ``failed_by``, as plain JSON."""
        counted: dict[str, int] = {fate: self.count(fate) for fate in _FATES}
        return {"received": self.received, **counted, "failed_by": dict(sorted(self.failed_by.items()))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ledger:
        """The ledger that ``to_json`` wrote; an empty one from an empty ``value``."""
        return cls(value.get("received", 0), {fate: value.get(fate, 0) for fate in _FATES}, value.get("failed_by", {}))

    def __str__(self) -> str:
        """Every fate that there was: ``64 episodes: 60 trained, 3 without difference, 1 failed (1 agent)``."""
        told = [f"{self.count(fate):,} {self._word(fate)}" for fate in _FATES if self.count(fate)]
        return f"{self.received:,} episode{'' if self.received == 1 else 's'}: {', '.join(told) or 'none'}"

    def _word(self, fate: Fate) -> str:
        if fate == "failed" and self.failed_by:
            return f"failed ({', '.join(f'{count:,} {side}' for side, count in sorted(self.failed_by.items()))})"
        return _WORDS.get(fate, fate)


def step_ledger(
    groups: Sequence[Group],
    fates: Sequence[Sequence[Fate]],
    *,
    left_out: Iterable[tuple[Group, Sequence[Fate]]] = (),
    stale: Iterable[Group] = (),
) -> Ledger:
    """The ledger of a step.

    ``groups`` are those that its batch was made of, and ``fates`` what ``build_batch`` says of their episodes.
    ``left_out`` are groups that dynamic sampling replaced because a filter leaves them out, each with the fates of its
    episodes, and ``stale`` groups that were dropped because they were too old; episodes of these that failed or were
    rejected are counted as that. Raises ``RuntimeError`` where ``fates`` do not match the groups.
    """
    trained, old = _episodes(groups), _episodes(stale)
    replaced = [each for group, of_group in left_out for each in zip(group.episodes, of_group, strict=True)]
    told = list(chain.from_iterable(fates))
    if len(told) != len(trained):
        raise RuntimeError(f"the fates of {len(told)} episodes are told, and the groups hold {len(trained)}")
    known: list[tuple[Episode, Fate]] = [
        *zip(trained, told, strict=True),
        *replaced,
        *((episode, episode.fate or "stale") for episode in old),
    ]
    failures = (episode.failure for episode, fate in known if fate == "failed")
    return Ledger(
        received=len(trained) + len(replaced) + len(old),
        fates=Counter(fate for _, fate in known),
        failed_by=Counter(_UNKNOWN if failure is None else failure.side for failure in failures),
    )


def _episodes(groups: Iterable[Group]) -> list[Episode]:
    return [episode for group in groups for episode in group.episodes]
