"""Objectives: the loss of a sampled token, whose gradient is the policy gradient.

They are handed to the learner, which calls them with tensors of shape (terms,); see ``agentrl.learner.contract``. The
ratio ``r = π / π_anchor`` is measured from what the correction has chosen. Ratios are limited to ``e^±20``, so that a
token whose log-probability is wrong cannot make the loss infinite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from agentrl.algorithms.contract import Algorithm, Objection
from agentrl.algorithms.corrections import per_call
from agentrl.config.section import Section
from agentrl.learner.contract import ObjectiveLoss, ObjectiveTerms

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CispoObjective",
    "ClipObjective",
    "DppoObjective",
    "GspoObjective",
    "LikelihoodObjective",
    "ReinforceObjective",
]

_MAX_LOG_RATIO = 20.0


class ClipObjective:
    """PPO's clipped surrogate, token by token (Schulman et al. 2017, eq. 7).

    The loss is ``-min(r · A, clip(r, 1 - clip_low, 1 + clip_high) · A)``. Two separate bounds are DAPO's clip-higher
    (Yu et al. 2025, section 3.1). Where ``A < 0`` the surrogate does not bound ``r`` from above; there ``dual_clip``
    does: the loss is at most ``-dual_clip · A`` (Ye et al. 2020, eq. 5).
    """

    class Settings(Section):
        clip_low: float = Field(0.2, ge=0, le=1)
        """How far below 1 the ratio still moves a token whose advantage is negative."""
        clip_high: float = Field(0.2, ge=0)
        """How far above 1 the ratio still moves a token whose advantage is positive."""
        dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
        """Greatest ratio of a token whose advantage is negative; null for none."""

    def __init__(self, settings: Settings) -> None:
        self._low = 1.0 - settings.clip_low
        self._high = 1.0 + settings.clip_high
        self._dual_clip = settings.dual_clip

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        ratio = _bounded(terms.logprob - terms.anchor).exp()
        return _surrogate(ratio, terms.advantage, self._low, self._high, self._dual_clip)


class GspoObjective:
    """The clipped surrogate of whole sequences, each what one call sampled: GSPO (Zheng et al. 2025, eq. 5).

    The ratio of a call of ``n`` tokens is ``s = (π(y) / π_anchor(y))^(1/n)`` (eq. 7), and every token of it has the
    ratio ``sg[s] · π / sg[π]`` of GSPO-token (eq. 13 and 14), whose gradient is GSPO's where the call's tokens share
    an advantage. A call is clipped as a whole, so the bounds are much narrower than those of tokens.
    """

    class Settings(Section):
        clip_low: float = Field(3e-4, ge=0, le=1)
        """How far below 1 a call's ratio still moves it where its advantage is negative."""
        clip_high: float = Field(4e-4, ge=0)
        """How far above 1 a call's ratio still moves it where its advantage is positive."""

    def __init__(self, settings: Settings) -> None:
        self._low = 1.0 - settings.clip_low
        self._high = 1.0 + settings.clip_high

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if getattr(algorithm.correction, "level", "sequence") == "sequence":
            return None
        return Objection(
            "GSPO takes the ratio of a whole call since single tokens say too little, and this correction weighs or "
            "leaves out single tokens",
            "set algorithm.correction=ratio, or a correction that takes level: sequence, such as truncated",
        )

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        held = terms.logprob.detach()
        sequence = _bounded(per_call(held - terms.anchor, terms.call, mean=True)).exp()
        return _surrogate(sequence * (terms.logprob - held).exp(), terms.advantage, self._low, self._high, None)


class CispoObjective:
    """REINFORCE with a truncated importance weight, which leaves no token without a gradient.

    The loss is ``-sg[clip(r, floor, cap)] · A · log π``: CISPO (MiniMax-M1, Chen et al. 2025, eq. 4 and 5). PPO's clip
    takes the gradient from rare tokens whose ratio rises first; this one bounds only how much they count. The paper
    sets no lower bound; the upper one is that of ScaleRL (Khatri et al. 2025).
    """

    class Settings(Section):
        cap: float = Field(5.0, gt=1)
        """Greatest weight of a token."""
        floor: float = Field(0.0, ge=0, lt=1)
        """Least weight of a token."""

    def __init__(self, settings: Settings) -> None:
        self._cap = settings.cap
        self._floor = settings.floor

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if algorithm.updates > 1 or getattr(algorithm.correction, "anchor", "behaviour") == "behaviour":
            return None
        return Objection(
            "CISPO is a truncated importance weight itself, and beside this correction its ratio is no longer the one "
            "against the sampler",
            "set algorithm.correction=ratio, or algorithm.objective=reinforce with this correction",
        )

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        ratio = _bounded(terms.logprob.detach() - terms.anchor).exp()
        weight = ratio.clamp(self._floor, self._cap)
        return ObjectiveLoss(-weight * terms.advantage * terms.logprob, (weight != ratio) & (terms.advantage != 0))


class DppoObjective:
    """The surrogate ``-r · A`` without the updates that lead out of a trust region of probabilities instead of ratios.

    A token is left out where its update would move it further from the sampler, which is where ``A > 0`` and ``r > 1``
    or ``A < 0`` and ``r < 1``, and the divergence from the sampler is above ``threshold``: DPPO (Qi et al. 2026,
    arXiv:2602.04879, eq. 12). The divergence is that of the sampled token against all others: total variation
    (eq. 13) or Kullback-Leibler (eq. 14). So a rare token may become many times likelier, and a likely one may not
    lose much at once.
    """

    class Settings(Section):
        divergence: Literal["tv", "kl"] = "tv"
        """`tv` is the difference of the token's probabilities, `kl` their Kullback-Leibler divergence in nats."""
        threshold: Annotated[float, Field(gt=0)] | None = None
        """The divergence above which updates are left out; null is 0.15 for `tv` and 0.05 for `kl`."""

    def __init__(self, settings: Settings) -> None:
        self._total_variation = settings.divergence == "tv"
        usual = 0.15 if self._total_variation else 0.05
        self._threshold = usual if settings.threshold is None else settings.threshold

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if getattr(algorithm.correction, "anchor", "behaviour") == "behaviour":
            return None
        return Objection(
            "DPPO's trust region lies around the policy that sampled (Qi et al. 2026, section 5.2), and this "
            "correction measures the ratio from another",
            "set algorithm.correction=ratio",
        )

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        advantage = terms.advantage
        ratio = _bounded(terms.logprob - terms.anchor).exp()
        held = ratio.detach()
        away = ((advantage > 0) & (held > 1)) | ((advantage < 0) & (held < 1))
        masked = away & (self._divergence(terms.behaviour, terms.logprob.detach()) > self._threshold)
        return ObjectiveLoss(-(ratio * advantage).where(~masked, 0.0), masked)

    def _divergence(self, sampler: Tensor, learner: Tensor) -> Tensor:
        """Of the sampled token against all others, from its log-probabilities under both."""
        p, q = sampler.exp(), learner.exp()
        if self._total_variation:
            return (p - q).abs()
        # A probability of 1 leaves nothing for the others; the least that is left keeps the logarithm finite.
        least = 1e-12
        p_others, q_others = (1 - p).clamp(min=least), (1 - q).clamp(min=least)
        return p * (sampler - learner) + p_others * (p_others.log() - q_others.log())


class ReinforceObjective:
    """The plain policy gradient: the loss is ``-A · log π`` (Williams 1992, eq. 4).

    It takes no ratio, so tokens of an older policy or a less exact engine are accounted for by the weight of the
    correction alone.
    """

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if getattr(algorithm.correction, "anchor", "learner") == "learner":
            return None
        return Objection(
            "REINFORCE takes no ratio, and this correction leaves it to the ratio to account for tokens that an older "
            "policy sampled",
            "set algorithm.correction=truncated, masked or icepop, whose weights do that",
        )

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        return ObjectiveLoss(-terms.advantage * terms.logprob, _nowhere(terms))


class LikelihoodObjective:
    """The negative log-likelihood, ``-log π``, of every token whose advantage is not 0: imitation, as in fine-tuning.

    Neither the size nor the sign of the advantage plays a part.
    """

    def objection(self, algorithm: Algorithm) -> Objection | None:
        if algorithm.command == "train":
            return Objection(
                "it imitates every episode, the bad ones as well as the good ones",
                "imitate chosen episodes or conversations by agentrl sft, or set algorithm.objective=reinforce",
            )
        if getattr(algorithm.correction, "anchor", "behaviour") == "behaviour":
            return None
        return Objection(
            "what is imitated was not sampled by the policy, so that there is nothing to weigh it against",
            "set algorithm.correction=ratio",
        )

    def __call__(self, terms: ObjectiveTerms) -> ObjectiveLoss:
        return ObjectiveLoss(-terms.logprob.where(terms.advantage != 0, 0.0), _nowhere(terms))


def _surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float, dual_clip: float | None) -> ObjectiveLoss:
    """PPO's clipped surrogate of ``ratio``, shape (terms,)."""
    gain = (ratio * advantage).minimum(ratio.clamp(low, high) * advantage)
    held = ratio.detach()
    clipped = ((advantage > 0) & (held > high)) | ((advantage < 0) & (held < low))
    if dual_clip is not None:
        negative = advantage < 0
        gain = gain.where(~negative, gain.maximum(dual_clip * advantage))
        clipped = clipped | (negative & (held > dual_clip))
    return ObjectiveLoss(-gain, clipped)


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def _nowhere(terms: ObjectiveTerms) -> Tensor:
    """False for every term: where an objective cuts off no gradient."""
    return terms.call < 0
