"""Replay: what a run that is resumed has on disk beyond its checkpoint.

The steps after the checkpoint are repeated from the episodes that they trained, and nothing is rolled out for them.
What no step has taken is used again: whole groups are there to be trained, of others the missing episodes are run.

Repeated on a CPU, a step makes the weights that it made before, to the bit. Where it does not, as on a GPU or under
changed settings, the weights after it are others: those that the run had are lost, and so is the *lineage* of every
token that they sampled. Such tokens are trained all the same. Their log-probabilities are those under which they were
sampled, so the correction for older policies holds for them; they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentrl.costs.cost import Cost
from agentrl.errors import RunError
from agentrl.rollout.buffer import Taken
from agentrl.rollout.contract import Episode, EpisodeKey, Group, Phase
from agentrl.runs.contract import Membership, MetricsLine
from agentrl.runs.episodes import EpisodeReader

__all__ = ["Lineage", "OpenGroups", "Replay", "Resumed"]

Samples = Callable[[int, int], Sequence[int]]
"""From the ordinal of a group, and how often it was dropped before, to the sample numbers of its episodes.

An empty sequence stands for all that there are.
"""


@dataclass(frozen=True, slots=True)
class OpenGroups:
    """The training groups that a run had begun and no step has taken."""

    taken: frozenset[int] = frozenset()
    """Ordinals of the groups that steps have trained or left out."""
    dropped: Mapping[int, int] = field(default_factory=dict)
    """How often each group was dropped because it was too old, where it was."""
    episodes: Mapping[int, tuple[Episode, ...]] = field(default_factory=dict)
    """By ordinal, the finished episodes of groups that no step has taken, in the order of their samples."""

    @property
    def next(self) -> int:
        """The first ordinal after all groups of which something is known."""
        return max((*self.taken, *self.dropped, *self.episodes), default=-1) + 1


class Replay:
    """Reads what a run has stored beyond the checkpoint of ``version``."""

    def __init__(self, store: EpisodeReader, version: int, samples: Samples) -> None:
        self.version = version
        self._store = store
        self._samples = samples
        self._memberships = store.memberships()

    @property
    def last(self) -> int:
        """The version after all steps that had begun."""
        return self._memberships[-1].step if self._memberships else self.version

    def __len__(self) -> int:
        """Return how many steps are repeated."""
        return sum(membership.step > self.version for membership in self._memberships)

    def steps(self) -> Iterator[tuple[int, Taken]]:
        """The number of each step after the checkpoint, and what it took, as it was when the step began.

        Raises ``RunError`` where an episode that a step has taken is not in the store.
        """
        dropped: Counter[int] = Counter()
        for membership in self._memberships:
            if membership.step > self.version:
                yield membership.step, self._taken(membership, dropped)
            dropped.update(membership.stale)

    def has(self, step: int) -> bool:
        """Whether the run has begun ``step``."""
        return any(membership.step == step for membership in self._memberships)

    def check_next(self, step: int, version: int) -> None:
        """Raise ``RunError`` where ``step`` does not follow ``version``, since the store lacks what lies between."""
        if step != version + 1:
            raise RunError(
                f"{self._store.path} tells which groups step {step} took, and not those of step {version + 1} before it"
            )

    def _taken(self, membership: Membership, dropped: Mapping[int, int]) -> Taken:
        def groups(ordinals: Iterable[int]) -> tuple[Group, ...]:
            return tuple(self._group(ordinal, dropped.get(ordinal, 0)) for ordinal in sorted(ordinals))

        return Taken(groups(membership.trained), groups(membership.left_out), groups(membership.stale))

    def _group(self, ordinal: int, attempt: int) -> Group:
        found = {episode.key.sample: episode for episode in self._store.load(phase="train", group=ordinal)}
        wanted = self._samples(ordinal, attempt) or sorted(found)
        if missing := [sample for sample in wanted if sample not in found]:
            raise RunError(f"{self._store.path} has no sample {missing[0]} of group {ordinal}, which a step has taken")
        episodes = tuple(found[sample] for sample in wanted)
        return Group(episodes[0].key.task, episodes)

    def open_groups(self) -> OpenGroups:
        """What the run had begun beyond its last step."""
        dropped = Counter(ordinal for membership in self._memberships for ordinal in membership.stale)
        taken = (each for membership in self._memberships for each in (*membership.trained, *membership.left_out))
        found: dict[int, dict[int, Episode]] = {}
        for episode in self._store.untaken():
            found.setdefault(episode.key.group, {})[episode.key.sample] = episode
        live = {
            ordinal: tuple(
                by_sample[sample]
                for sample in (self._samples(ordinal, dropped[ordinal]) or sorted(by_sample))
                if sample in by_sample
            )
            for ordinal, by_sample in sorted(found.items())
        }
        return OpenGroups(
            frozenset(taken), {**dropped}, {ordinal: episodes for ordinal, episodes in live.items() if episodes}
        )

    def evaluated(self, phase: Phase, version: int) -> dict[int, list[Episode]]:
        """The finished episodes of the evaluation of ``version``, by the ordinals of their groups."""
        found: dict[int, dict[int, Episode]] = {}
        if version <= self.last:
            for episode in self._store.load(phase=phase, version=version):
                found.setdefault(episode.key.group, {})[episode.key.sample] = episode
        return {ordinal: list(by_sample.values()) for ordinal, by_sample in found.items()}


class Lineage:
    """Follows whether repeated steps make the weights that they made before, and counts the tokens of lost ones."""

    def __init__(self, logged: Iterable[MetricsLine], *, exact: bool) -> None:
        """``logged`` are the metrics of the steps as they were; ``exact`` says that equal steps make equal weights.

        It decides for a step whose metrics the run had not logged.
        """
        self._logged = {line.step: line.metrics for line in logged if not line.is_evaluation}
        self._exact = exact
        self._stored: set[EpisodeKey] = set()
        self.lost_from: int | None = None
        """The first version whose weights are lost; ``None`` where none are."""

    def is_lost_by(self, step: int, learned: Mapping[str, float]) -> bool:
        """Take in what the learner says of a repeated step; returns whether it is the first that came out otherwise."""
        if self.lost_from is not None:
            return False
        before = self._logged.get(step)
        if before is None:
            is_same = self._exact
        else:
            is_same = all(before.get(name) == value for name, value in learned.items() if _tells(name, value))
        if not is_same:
            self.lost_from = step
        return not is_same

    def proven(self, step: int) -> dict[str, float]:
        """The metrics of the proof of the step's update, which was given when the step was made first."""
        is_same = self.lost_from is None and step in self._logged
        logged = self._logged[step].items() if is_same else ()
        return {name: value for name, value in logged if name.startswith(("proof/", "weights/")) and value is not None}

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take in episodes that the run had stored before it was resumed."""
        self._stored.update(episode.key for episode in episodes)

    def lost_tokens(self, groups: Iterable[Group]) -> int:
        """How many sampled tokens of ``groups`` lost weights have sampled."""
        if self.lost_from is None:
            return 0
        spans = (
            span.sampled
            for group in groups
            for episode in group.episodes
            if episode.key in self._stored
            for span in episode.tree.spans
        )
        return sum(
            version >= self.lost_from for sampled in spans if sampled is not None for version in sampled.versions
        )


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a run that is resumed has to go on with."""

    replay: Replay
    lineage: Lineage
    checkpoint: Path | None
    """The folder of the checkpoint; ``None`` where the run goes on from its model."""
    lines: Sequence[MetricsLine]
    """The metrics of the steps and evaluations up to there."""
    spent: Cost = field(default_factory=Cost)
    """What the run had cost when it ended."""
    seconds: float = 0.0
    """How long the run had taken by then."""
    measures_anew: bool = False
    """Whether the config has changed in what evaluations depend on."""

    def evaluated(self, phase: Phase, version: int) -> dict[int, list[Episode]]:
        """The finished episodes of the evaluation of ``version`` that still hold, by the ordinals of their groups."""
        lost = self.lineage.lost_from
        if self.measures_anew or (lost is not None and version >= lost):
            return {}
        return self.replay.evaluated(phase, version)


def _tells(name: str, value: float) -> bool:
    """Whether a metric tells of the weights: times do not, and what is not finite was logged as null."""
    return not name.startswith("seconds/") and abs(value) < float("inf")
