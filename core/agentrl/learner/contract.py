"""The learner's contract: the batch that enters it, the scores that leave it, and the two functions that make its loss.

A batch is a list of paths (runs of token ids from a root) and ``n`` loss terms on them. Each term is one sampled token:
``Targets`` says which token it is and which position predicts it, and the columns of ``TrainBatch`` say how it is
trained. The loss of a step is ``Σ weight · importance · objective`` over all terms, where ``weight`` is a column of the
batch, ``importance`` is ``Anchor.weight`` of the correction, and ``objective`` is what the objective makes of the term.

The learner knows no task, episode or group. All arrays are NumPy arrays of shape (n,) unless something else is said;
none of them may be changed once it is in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
    Bits = npt.NDArray[np.uint8]

__all__ = [
    "DEFAULT_POLICY",
    "Anchor",
    "Correction",
    "Objective",
    "ObjectiveLoss",
    "ObjectiveTerms",
    "Scores",
    "Targets",
    "TrainBatch",
]

DEFAULT_POLICY = "default"
"""The name of the policy where a run trains only one."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Tokens to score: for each, the position that predicts it and the distribution that it is scored under.

    The distribution is ``softmax(logits / temperature)`` over the allowed tokens of the vocabulary, by default all.
    """

    path: Ints
    """Index of the path that the position lies on."""
    depth: Ints
    """Number of tokens before the position on its path. The token itself need not be on the path."""
    token: Ints
    """Token id."""
    temperature: Floats
    """Greater than 0."""
    masks: Bits | None = None
    """Shape (masks, ⌈vocabulary / 8⌉): the distinct sets of allowed tokens, one bit a token. Token ``t`` is allowed
    where bit ``t % 8``, counted from the least significant, of byte ``t // 8`` is set: what
    ``numpy.packbits(allowed, axis=-1, bitorder="little")`` gives. ``None`` where every token is always allowed."""
    mask: Ints | None = None
    """Row of ``masks`` that applies to each target; -1 allows the whole vocabulary. ``None`` without ``masks``."""


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Everything that one optimiser step of one policy trains on."""

    paths: tuple[Ints, ...]
    """Token ids from the root, one array a path. Paths may share prefixes, which are then computed once."""
    targets: Targets
    """The ``n`` sampled tokens that are trained. All terms of one call lie on one path."""
    logprob: Floats
    """Behaviour log-probability, natural: that which the token was sampled with, under its target's distribution."""
    version: Ints
    """Policy version that sampled the token."""
    advantage: Floats
    """How much better than expected the token turned out; a term with advantage 0 has no gradient."""
    weight: Floats
    """Share of the term in the loss of the step."""
    call: Ints
    """Which model call sampled the token, numbered from 0 over the batch; the sequence of sequence-level objectives."""
    extra: Mapping[str, Floats] = field(default_factory=dict)
    """Further columns by name, such as log-probabilities of a reference model. The objective is given them."""
    labels: tuple[str, ...] = ()
    """What each path is called in error messages, such as the name of its episode; may be empty."""
    policy: str = DEFAULT_POLICY
    """Name of the policy that the batch trains."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model makes of ``Targets``, in their order and under their own distributions."""

    logprob: Floats
    """Natural log-probability of each token."""
    entropy: Floats
    """Entropy, in nats, of the distribution that each token is scored under."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the probability ratio is measured from; both tensors have shape (terms,) and no gradient."""

    logprob: torch.Tensor
    """Log-probability in the denominator of the ratio."""
    weight: torch.Tensor
    """Importance weight that multiplies the loss of each term."""


class Correction(Protocol):
    """Accounts for tokens that were sampled by an older policy, or by an engine with other numerics."""

    def __call__(self, learner: torch.Tensor, behaviour: torch.Tensor) -> Anchor:
        """Return the anchor of each term.

        ``learner`` holds the log-probabilities under the weights before this step's update, ``behaviour`` those that
        the tokens were sampled with. Both have shape (terms,), and neither has a gradient.
        """
        ...


@dataclass(frozen=True, slots=True)
class ObjectiveTerms:
    """The loss terms of one forward pass; every tensor has shape (terms,). All terms of a call are in the same pass."""

    logprob: torch.Tensor
    """Log-probability under the weights being trained; the only tensor with a gradient."""
    anchor: torch.Tensor
    """``Anchor.logprob``."""
    advantage: torch.Tensor
    call: torch.Tensor
    """Which call each term belongs to, numbered from 0 over the batch."""
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The further columns of the batch, by name."""


@dataclass(frozen=True, slots=True)
class ObjectiveLoss:
    """What an objective makes of each term; both tensors have shape (terms,)."""

    loss: torch.Tensor
    """To be minimised."""
    clipped: torch.Tensor
    """True where the objective cut the gradient off; reported as ``policy/clip_fraction``."""


class Objective(Protocol):
    """The surrogate loss whose gradient is the policy gradient."""

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        """Return the loss of each term.

        The gradient of a term whose advantage is 0 must be 0: a pass in which all advantages are 0 is computed without
        gradients.
        """
        ...
