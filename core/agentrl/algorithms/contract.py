"""What an algorithm is made of: five parts, each a callable that a plugin may register.

From an episode to its gradient::

    credit         episode                      → a return for every call that earned one
    advantage      the returns of one group     → an advantage for every such call
    normalisation  how the loss terms belong    → a weight for every sampled token
    correction     learner and sampler logprobs → the anchor of the ratio, and an importance weight
    objective      ratio and advantage          → a loss for every sampled token

The loss of a step is the weighted sum over all sampled tokens, ``Σ weight · correction · objective``.
The learner knows no part by name. A part declares its keys as ``Settings``; one beside which keys of another slot
mean nothing names those in ``LEAVES_WITHOUT_EFFECT``, a mapping from slot to keys, and they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from agentrl.rollout.contract import Episode

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

ByCall = Mapping[str, float]
"""A number for each call, by response id. A call that is missing is not trained."""


class Credit(Protocol):
    """Says what each call of an episode earned."""

    def __call__(self, episode: Episode) -> ByCall:
        """The return of every call that reward reaches; ``episode.outcome`` is ``rewarded``."""
        ...


class Advantage(Protocol):
    """Compares the episodes of one group."""

    def __call__(self, returns: Sequence[ByCall]) -> Sequence[ByCall]:
        """The advantage of every call, episode by episode, in the order given.

        ``returns`` holds the group's rewarded episodes only; they may have any number of calls.
        """
        ...


@dataclass(frozen=True, slots=True)
class Membership:
    """Which episode and which call each of the ``n`` loss terms of a step belongs to, counted from 0."""

    episode: Ints
    call: Ints


class Normalisation(Protocol):
    """Weighs loss terms, so that the sum over a step is some kind of mean."""

    def __call__(self, membership: Membership) -> Floats:
        """The weight of each loss term, computed over the whole step before it is cut into passes."""
        ...


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the ratio is measured from; both tensors have one entry a loss term and no gradient."""

    logprob: torch.Tensor
    weight: torch.Tensor


class Correction(Protocol):
    """Accounts for tokens that an older policy, or an engine with other numerics, has sampled."""

    def __call__(self, learner: torch.Tensor, behaviour: torch.Tensor) -> Anchor:
        """``learner`` are the logprobs before this step's update, ``behaviour`` those of the sampler."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectiveTerms:
    """Loss terms of one pass, one entry each. All terms of a call are in the same pass."""

    logprob: torch.Tensor
    """Log-probability under the weights being trained; the only tensor with a gradient."""
    anchor: torch.Tensor
    advantage: torch.Tensor
    call: torch.Tensor
    """Which call each term belongs to, counted from 0 over the step."""


@dataclass(frozen=True, slots=True)
class ObjectiveLoss:
    """What an objective makes of each term."""

    loss: torch.Tensor
    """To be minimised."""
    clipped: torch.Tensor
    """True where the objective cut the gradient off."""


class Objective(Protocol):
    """The surrogate whose gradient is the policy gradient."""

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        """The loss of each term. Where an advantage is 0 its gradient is too: such terms may not be given one."""
        ...
