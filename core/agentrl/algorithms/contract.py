"""What an algorithm is made of: a part in each of five slots, and further ones in four; a plugin may register any.

From a step's groups of episodes to its gradient::

    shaping        an episode                    → the episode with other rewards (any number of parts)
    credit         an episode                    → a return for every call that earned one
    advantage      the returns of one group      → an advantage for every such call (``StepAdvantage``: of a step)
    filter         the groups, with advantages   → which of them, or of their episodes, are trained on (any number)
    normalisation  which term is of which call   → a weight for every sampled token
    correction     learner and sampler logprobs  → the anchor of the ratio, and an importance weight
    objective      ratio and advantage           → a loss for every sampled token
    penalties      log-probability and entropy   → what is added to the loss of every token (any number of parts)
    critic         values and returns            → the loss of a value head (none or one)

Those up to normalisation are described here. The others are handed to the learner and described in
``agentrl.learner.contract``.

A plugin registers a part in the entry-point group ``agentrl.parts``, under its slot and its name
(``advantage.group``), and a ``Preset`` in the group ``agentrl.algorithms``. A part declares its keys as a pydantic
model named ``Settings``. A part beside which keys of another slot mean nothing lists those in the attribute
``LEAVES_WITHOUT_EFFECT``, a mapping from slot to keys, or in ``WITH_ONE_UPDATE_LEAVES_WITHOUT_EFFECT`` where that holds
only while a step has one update; a configuration that sets one of them is refused. A part that makes no sense beside
certain others has a method ``objection(algorithm)``, which is given the whole algorithm once it is built, and returns
an ``Objection``, or ``None``. An advantage of which nothing comes for a group of one episode has the attribute
``needs_group``, and groups of one are refused beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from agentrl.learner.contract import Correction, Critic, Loss, Objective, Penalty
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
    "Objection",
    "Preset",
    "Shaping",
    "StepAdvantage",
    "TokenAdvantage",
    "TokenTerms",
]

ByCall = Mapping[str, float]
"""A number for each model call, by response id. A call that is missing is not trained."""


class Shaping(Protocol):
    """Changes the rewards of an episode before anything is made of them."""

    def __call__(self, episode: Episode) -> Episode:
        """Return ``episode``, whose outcome is ``rewarded``, with the rewards that are trained on."""
        ...


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
class TokenTerms:
    """The ``n`` loss terms of a step before they have advantages of their own; every array has shape (n,)."""

    advantage: Floats
    """What ``Advantage`` gave the term's call."""
    logprob: Floats
    """Log-probability that the token was sampled with."""
    path: Ints
    """Which path the term lies on, numbered over the step. A path is a conversation, from its first token to its last;
    a prefix that several share has its terms on one of them."""
    depth: Ints
    """How many tokens come before the one that predicts the term, on its path: terms of a path in the order of their
    depth are in the order that they were sampled in."""
    call: Ints
    """Which call sampled the token, numbered over the step."""
    columns: Mapping[str, Floats]
    """What models made of the terms, by column: those that ``TokenAdvantage.columns`` names."""


@runtime_checkable
class TokenAdvantage(Advantage, Protocol):
    """An advantage of every token, for which models score the batch first.

    Called as an ``Advantage`` it gives each call what ``of_tokens`` starts from, such as its return. All episodes are
    trained, even where that is 0.
    """

    @property
    def columns(self) -> Sequence[str]:
        """What it needs of models: ``value`` (of the value head), ``teacher`` or ``reference`` (log-probabilities)."""
        ...

    def of_tokens(self, terms: TokenTerms) -> Mapping[str, Floats]:
        """Return the column ``advantage``, and any further ones that the learner is to have, such as ``return``."""
        ...


@dataclass(frozen=True, slots=True)
class ComparedGroup:
    """A group and what its rewarded episodes earned; the two sequences have one entry for each of those, in order."""

    group: Group
    """With the rewards that its episodes were given, before any shaping."""
    returns: Sequence[ByCall]
    advantages: Sequence[ByCall]
    tells_apart: bool
    """Whether any advantage is not 0, so that the group can be learned from."""

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """The rewarded episodes of the group: rejected and failed ones have no part in the comparison."""
        return tuple(episode for episode in self.group.episodes if episode.outcome == "rewarded")


class Filter(Protocol):
    """Chooses the groups of a step, or the episodes of each, that are trained on."""

    def __call__(self, groups: Sequence[ComparedGroup]) -> Sequence[bool | Sequence[bool]]:
        """Return, for each of the step's groups in order, whether it enters the batch.

        Instead of one answer for a group there may be one for each of its rewarded episodes, in their order. What is
        left out has no loss terms and no share in the normalisation; its rewards have had their part in the comparison
        of its group. Episodes are counted by their fates, and groups of which nothing enters in the metric
        ``groups/filtered``. Of several filters each is asked about all groups, and what any leaves out is left out.
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
class Objection:
    """Why a part makes no sense beside the others of an algorithm."""

    reason: str
    """Completes the sentence "algorithm.objective=… makes no sense here: …"."""
    fix: str
    """What to set instead."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One part in every slot, each built with its keys."""

    name: str
    credit: Credit
    advantage: Advantage
    normalisation: Normalisation
    correction: Correction
    objective: Objective
    filter: Sequence[Filter] = ()
    shaping: Sequence[Shaping] = ()
    """In the order that they are applied in."""
    penalties: Sequence[Penalty] = ()
    critic: Critic | None = None
    command: str = "train"
    """``Preset.command``."""
    updates: int = 1
    """How many updates a step has: with several, the ratio against the policy before the step is not always 1."""

    @property
    def loss(self) -> Loss:
        """The parts that are handed to the learner."""
        return Loss(self.correction, self.objective, self.penalties, self.critic)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that models have to add to a batch before it is trained on, each once."""
        needed = [name for penalty in self.penalties for name in penalty.columns]
        if isinstance(self.advantage, TokenAdvantage):
            needed += self.advantage.columns
        return tuple(dict.fromkeys(needed))


@dataclass(frozen=True, slots=True)
class Preset:
    """A named choice of parts, each as the configuration would write it: ``{"name": …, its keys}``."""

    credit: Mapping[str, Any]
    advantage: Mapping[str, Any]
    normalisation: Mapping[str, Any]
    correction: Mapping[str, Any]
    objective: Mapping[str, Any]
    filter: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ()
    """One part, or any number."""
    shaping: Sequence[Mapping[str, Any]] = ()
    penalties: Sequence[Mapping[str, Any]] = ()
    critic: Mapping[str, Any] | None = None
    sources: Sequence[str] = ()
    """The papers that it follows, with the numbers of their equations."""
    use: str = ""
    """When to use it, in whole sentences."""
    command: str = "train"
    """The command of ``agentrl`` that trains with it."""
