"""What an algorithm is made of: a part in each of six slots, each a callable that a plugin may register.

From a step's groups of episodes to its gradient::

    credit         an episode                    → a return for every call that earned one
    advantage      the returns of one group      → an advantage for every such call (``StepAdvantage``: of a step)
    filter         the groups, with advantages   → which of them are trained on
    normalisation  which term is of which call   → a weight for every sampled token
    correction     learner and sampler logprobs  → the anchor of the ratio, and an importance weight
    objective      ratio and advantage           → a loss for every sampled token

The first four are described here. The last two are handed to the learner and described in
``agentrl.learner.contract``.

A plugin registers a part in the entry-point group ``agentrl.parts``, under its slot and its name
(``advantage.group``), and a ``Preset`` in the group ``agentrl.algorithms``. A part declares its keys as a pydantic
model named ``Settings``. A part beside which keys of another slot mean nothing lists those in the class attribute
``LEAVES_WITHOUT_EFFECT``, a mapping from slot to keys; a configuration that sets one of them is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from agentrl.learner.contract import Correction, Objective
from agentrl.rollout.contract import Episode, Group

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats, Ints

__all__ = [
    "Advantage",
    "Algorithm",
    "ByCall",
    "ComparedGroup",
    "Credit",
    "Filter",
    "Membership",
    "Normalisation",
    "Preset",
    "StepAdvantage",
]

ByCall = Mapping[str, float]
"""A number for each model call, by response id. A call that is missing is not trained."""


class Credit(Protocol):
    """Says what each call of an episode earned."""

    def __call__(self, episode: Episode) -> ByCall:
        """Return what every call that reward reaches has earned; the outcome of ``episode`` is ``rewarded``."""
        ...


class Advantage(Protocol):
    """Compares the episodes of one group."""

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        """Return the advantage of every call, episode by episode, in the order given.

        ``returns`` holds the group's rewarded episodes only; they may have any number of calls.
        """
        ...


@runtime_checkable
class StepAdvantage(Advantage, Protocol):
    """An advantage whose baseline is not that of one group: it compares all groups of a step at once.

    ``of_step`` is called for a step instead of calling the part for each group.
    """

    def of_step(self, groups: Sequence[Sequence[ByCall]]) -> Sequence[Sequence[ByCall]]:
        """Return the advantages of each group, as for ``Advantage``; a group without rewarded episodes is empty."""
        ...


@dataclass(frozen=True, slots=True)
class ComparedGroup:
    """A group and what its rewarded episodes earned; the two sequences have one entry for each of those, in order."""

    group: Group
    returns: Sequence[ByCall]
    advantages: Sequence[ByCall]
    tells_apart: bool
    """Whether any advantage is not 0, so that the group can be learned from."""


class Filter(Protocol):
    """Chooses the groups of a step that are trained on."""

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[bool]:
        """Return, for each of the step's groups in order, whether it enters the batch.

        A group that is left out has no loss terms and no share in the normalisation; it is counted in the metric
        ``groups/filtered``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Membership:
    """Which episode and which call each of the ``n`` loss terms of a step belongs to.

    Both arrays have shape (n,); episodes and calls are numbered from 0 over the step.
    """

    episode: Ints
    call: Ints


class Normalisation(Protocol):
    """Weighs loss terms, so that the sum over a step becomes some kind of mean."""

    def __call__(self, membership: Membership) -> Floats:
        """Return the weight of each loss term, shape (n,), over the whole step before it is cut into passes."""
        ...


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One part in every slot, each built with its keys."""

    name: str
    credit: Credit
    advantage: Advantage
    filter: Filter
    normalisation: Normalisation
    correction: Correction
    objective: Objective


@dataclass(frozen=True, slots=True)
class Preset:
    """A named choice of parts, each as the configuration would write it: ``{"name": …, its keys}``."""

    credit: Mapping[str, Any]
    advantage: Mapping[str, Any]
    normalisation: Mapping[str, Any]
    correction: Mapping[str, Any]
    objective: Mapping[str, Any]
    filter: Mapping[str, Any] = field(default_factory=lambda: {"name": "filter.none"})
