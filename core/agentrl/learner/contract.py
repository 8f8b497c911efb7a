"""The learner's contract: the batch that enters it, the scores that leave it, and the functions that make its loss.

A batch is a list of paths (runs of token ids from a root) and ``n`` loss terms on them. Each term is one sampled token:
``Targets`` says which token it is and which position predicts it, and the columns of ``TrainBatch`` say how it is
trained. The loss of a step is ``Σ weight · (importance · objective + Σ penalty)`` over all terms, where ``weight`` is a
column of the batch, ``importance`` is ``Anchor.weight`` of the correction, ``objective`` is what the objective makes of
the term, and each ``penalty`` what a further part adds to it, times its coefficient, as a critic does for a value head.
``Loss`` holds those parts.

The learner knows no task, episode or group. All arrays are NumPy arrays of shape (n,) unless something else is said;
none of them may be changed once it is in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from agentrl.inference.contract import Weights

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
    "CorrectionTerms",
    "Critic",
    "Lease",
    "Loss",
    "Objective",
    "ObjectiveLoss",
    "ObjectiveTerms",
    "Penalty",
    "PenaltyTerms",
    "Scores",
    "StepResult",
    "Targets",
    "TermScores",
    "TrainBatch",
    "Trainable",
    "ValueTerms",
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
    update: Ints | None = None
    """Which of the step's updates trains each term, numbered from 0; ``None`` where there is one. All terms of a path
    are in the same, and the weights are shares of it."""
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
    value: Floats | None = None
    """What the value head expects at the position that predicts each token; ``None`` where there is no head."""


@dataclass(frozen=True, slots=True)
class TermScores:
    """What a step found of the ``n`` terms of its batch, in their order, and trained them by."""

    logprob: Floats
    """Log-probability under the weights before the step: what ``CorrectionTerms.learner`` was."""
    entropy: Floats
    """Entropy, in nats, of the distribution that each token is scored under, by the same weights."""
    importance: Floats
    """``Anchor.weight``, which multiplied the loss of the term."""


class StepResult(NamedTuple):
    """What one step, or one update of it, has made."""

    metrics: dict[str, float]
    terms: TermScores


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the probability ratio is measured from; both tensors have shape (terms,) and no gradient."""

    logprob: torch.Tensor
    """Log-probability in the denominator of the ratio."""
    weight: torch.Tensor
    """Importance weight that multiplies the loss of each term."""


@dataclass(frozen=True, slots=True)
class CorrectionTerms:
    """What a correction knows of the loss terms of one pass; every tensor has shape (terms,), and none has a gradient.

    All terms of a call are in the same pass.
    """

    learner: torch.Tensor
    """Log-probabilities under the weights before this step, also where it makes several updates."""
    behaviour: torch.Tensor
    """Log-probabilities that the tokens were sampled with."""
    age: torch.Tensor
    """How many steps the weights before this one are newer than those that sampled each token, from 0."""
    call: torch.Tensor
    """Which call each term belongs to, numbered from 0 over the batch."""


class Correction(Protocol):
    """Accounts for tokens that were sampled by an older policy, or by an engine with other numerics."""

    def __call__(self, terms: CorrectionTerms) -> Anchor:
        """Return the anchor of each term."""
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
    behaviour: torch.Tensor
    """Log-probability that the token was sampled with."""
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
        gradients, unless penalties are added.
        """
        ...


@dataclass(frozen=True, slots=True)
class PenaltyTerms:
    """The loss terms of one forward pass, for a penalty; every tensor has shape (terms,)."""

    logprob: torch.Tensor
    """Log-probability under the weights being trained, with a gradient."""
    entropy: torch.Tensor
    """Entropy, in nats, of the distribution that the token is scored under, with a gradient."""
    behaviour: torch.Tensor
    """Log-probability that the token was sampled with."""
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The further columns of the batch, by name: those that a penalty names in ``columns`` are among them."""


class Penalty(Protocol):
    """Something that is added to the loss of every term, whatever its advantage is."""

    @property
    def metric(self) -> str:
        """The metric under which the mean over terms of what ``__call__`` returned is reported, such as ``penalty/kl``,
        without the coefficient."""
        ...

    @property
    def coefficient(self) -> float:
        """What the penalty is multiplied by before it is added to the loss; 0 measures and changes nothing."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The further columns of the batch that it needs, such as ``reference``."""
        ...

    def __call__(self, terms: PenaltyTerms) -> torch.Tensor:
        """Return the penalty of each term, shape (terms,), without the coefficient."""
        ...


@dataclass(frozen=True, slots=True)
class ValueTerms:
    """The loss terms of one forward pass, for a critic; every tensor has shape (terms,)."""

    value: torch.Tensor
    """What the value head expects after the tokens before each term's, with a gradient."""
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The further columns of the batch, by name: ``value``, what the head expected before this step, and ``return``,
    what came."""


class Critic(Protocol):
    """The loss of a value head, which is trained beside the policy on the same hidden states."""

    @property
    def coefficient(self) -> float:
        """What the loss is multiplied by before it is added to the policy's."""
        ...

    @property
    def learning_rate_factor(self) -> float:
        """The learning rate of the value head's own weights over that of the policy."""
        ...

    def __call__(self, terms: ValueTerms) -> torch.Tensor:
        """Return the loss of each term, shape (terms,), without the coefficient."""
        ...


@dataclass(frozen=True, slots=True)
class Loss:
    """The parts that make the loss of a step."""

    correction: Correction
    objective: Objective
    penalties: Sequence[Penalty] = ()
    critic: Critic | None = None
    """Where there is one, the learner has a value head."""


class Lease(Weights, Protocol):
    """The weights of one policy version while somebody has them; the end of its block gives them back."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Trainable(Protocol):
    """A model under training, in this process or in several others. Not thread-safe: one call at a time.

    What each method does and raises is told at ``agentrl.learner.learner.Learner``. One that is computed in other
    processes raises ``HostLostError`` as well, where one of them is gone; nothing can be asked of it then.
    """

    @property
    def version(self) -> int:
        """How many steps made the weights."""
        ...

    @property
    def rows_because(self) -> str | None:
        """Why the model is trained on padded rows; ``None`` where it takes the forest."""
        ...

    @property
    def merges_at_start(self) -> bool:
        """Whether the model came as an adapter and its base, which an engine may have merged in its own way."""
        ...

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a block in which ``score`` is that of the model before an adapter was trained over it."""
        ...

    def step(self, batch: TrainBatch) -> StepResult:
        """Make new weights from ``batch``."""
        ...

    def score(self, targets: Targets, paths: Sequence[Ints]) -> Scores:
        """Score ``targets`` on ``paths`` under the current weights."""
        ...

    def lend(self, borrower: str) -> Lease:
        """Lend the weights to ``borrower`` until they are given back."""
        ...

    def set_aside(self) -> None:
        """Keep what only ``step`` needs in the CPU's memory until then, so that an engine has that of the device."""
        ...

    def bring_back(self) -> None:
        """Bring back what was set aside; ``step``, ``load_state`` and ``go_back`` do so by themselves."""
        ...

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model or an adapter into ``folder``."""
        ...

    def save_state(self, folder: Path) -> None:
        """Write into ``folder`` what a run needs, beside the weights, to go on as if it had never stopped."""
        ...

    def load_state(self, folder: Path) -> None:
        """Take up what ``save_state`` wrote."""
        ...

    def go_back(self, folder: Path, version: int) -> None:
        """Take up the checkpoint in ``folder``, as policy version ``version``."""
        ...
