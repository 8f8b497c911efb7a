"""The gradient of a batch's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agentrl.errors import RunError
from agentrl.learner.contract import (
    CorrectionTerms,
    Loss,
    ObjectiveTerms,
    PenaltyTerms,
    StepResult,
    TermScores,
    TrainBatch,
    ValueTerms,
)
from agentrl.learner.packing import IDLE, Idle, Pass
from agentrl.learner.policy import Policy, PolicyMetrics
from agentrl.learner.ranks import Ranks

if TYPE_CHECKING:
    import numpy.typing as npt

    from agentrl.learner.contract import Floats

    Bools = npt.NDArray[np.bool_]

__all__ = ["accumulate_gradient", "is_learned"]


def accumulate_gradient(
    policy: Policy,
    batch: TrainBatch,
    passes: Sequence[Pass],
    loss: Loss,
    *,
    version: int = 0,
    before: Floats | None = None,
) -> StepResult:
    """Add the gradient of the loss to the policy's weights; returns the ``policy/`` metrics, and the scores of terms.

    The loss is ``Σ weight · (importance · objective + Σ coefficient · penalty)`` over all terms, and the critic's.
    Weights are shares of the whole update, so however the terms are spread over passes, the sum of their gradients is
    that of one pass. Passes that ``is_learned`` leaves out are computed for the metrics alone. ``version`` is that of
    the policy's weights before the step, and ``before`` are the terms' log-probabilities under those, ``None`` while
    the weights are the same. The entropies that are returned are those of the weights as they are. Where several ranks
    compute, ``passes`` are those of this one, and what is returned is of all. Raises ``RunError`` where a pass needs
    more memory than the device has.
    """
    metrics = PolicyMetrics()
    scored: list[Tensor] = []
    learned = is_learned(batch, loss)
    for work in passes:
        learns = work.learns if isinstance(work, Idle) else bool(np.any(learned[work.targets_N]))
        try:
            with policy.threads.of(work.ids_RT.size), torch.set_grad_enabled(learns):
                if isinstance(work, Idle):
                    _idle(policy, work)
                else:
                    scored.append(_backward(policy, batch, work, loss, version, before, metrics))
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"a pass of {work.ids_RT.size} tokens does not fit the memory of {policy.device}",
                fix="lower training.tokens_per_batch",
            ) from error
    return StepResult(metrics.result(policy.ranks), _in_order(scored, passes, len(batch.version), policy.ranks))


def _in_order(scored: Sequence[Tensor], passes: Sequence[Pass], terms: int, ranks: Ranks) -> TermScores:
    """The scores of all terms, from those of each pass, shape (3, terms of the pass); copied to the CPU at once."""
    columns = torch.zeros((3, terms), dtype=torch.float64)
    if scored:
        places = np.concatenate([work.targets_N for work in passes if not isinstance(work, Idle)])
        columns[:, places] = torch.cat(list(scored), dim=1).cpu()
    return TermScores(*ranks.add_up(columns).numpy())


def _idle(policy: Policy, work: Idle) -> None:
    """Take part in what the ranks compute together, with a gradient of zero."""
    scores = policy.score(work, IDLE)
    if work.learns:
        total = torch.cat([made_N for made_N in scores if made_N is not None]).sum() * 0.0
        total.backward()  # type: ignore[no-untyped-call]


def is_learned(batch: TrainBatch, loss: Loss) -> Bools:
    """Which terms may have a gradient, shape (terms,): those with an advantage, or all beside a penalty or a critic."""
    if loss.critic is not None or any(penalty.coefficient for penalty in loss.penalties):
        return np.ones(len(batch.advantage), dtype=np.bool_)
    learned: Bools = batch.advantage != 0
    return learned


def _backward(
    policy: Policy,
    batch: TrainBatch,
    work: Pass,
    loss: Loss,
    version: int,
    before: Floats | None,
    metrics: PolicyMetrics,
) -> Tensor:
    """Returns the rows of ``TermScores``, shape (3, terms of the pass), in double precision and without a gradient."""
    scores = policy.score(work, batch.targets)
    now_N, entropy_N = scores.logprob_N.detach(), scores.entropy_N.detach()

    def column(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values[work.targets_N]).to(now_N)

    learner_N = now_N if before is None else column(before)
    behaviour_N, weight_N = column(batch.logprob), column(batch.weight)
    call_N = torch.from_numpy(batch.call[work.targets_N]).to(learner_N.device)
    extra = {name: column(values) for name, values in batch.extra.items()}
    anchor = loss.correction(CorrectionTerms(learner_N, behaviour_N, column(version - batch.version), call_N))
    made = loss.objective(
        ObjectiveTerms(
            logprob=scores.logprob_N,
            anchor=anchor.logprob,
            advantage=column(batch.advantage),
            call=call_N,
            behaviour=behaviour_N,
            extra=extra,
        )
    )
    total = (made.loss * anchor.weight * weight_N).sum()
    means = {"policy/weight_mean": anchor.weight, "policy/masked": anchor.weight == 0}
    for penalty in loss.penalties:
        of_terms = penalty(PenaltyTerms(scores.logprob_N, scores.entropy_N, behaviour_N, extra))
        total = total + penalty.coefficient * (of_terms * weight_N).sum()
        means[penalty.metric] = of_terms.detach()
    if loss.critic is not None and scores.value_N is not None:
        error_N = loss.critic(ValueTerms(scores.value_N, extra))
        total = total + loss.critic.coefficient * (error_N * weight_N).sum()
        means["value/loss"] = error_N.detach()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    metrics.add(
        loss=total.detach(),
        log_ratio_N=learner_N - behaviour_N,
        entropy_N=entropy_N,
        clipped_N=made.clipped,
        means=means,
    )
    return torch.stack([column_N.double() for column_N in (learner_N, entropy_N, anchor.weight)])
