"""The gradient of a batch's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentrl.errors import RunError
from agentrl.learner.contract import CorrectionTerms, Loss, ObjectiveTerms, PenaltyTerms, TrainBatch
from agentrl.learner.packing import Pass
from agentrl.learner.policy import Policy, PolicyMetrics, limited_threads

__all__ = ["accumulate_gradient"]


def accumulate_gradient(
    policy: Policy, batch: TrainBatch, passes: Sequence[Pass], loss: Loss, *, version: int = 0
) -> dict[str, float]:
    """Add the gradient of the loss to the policy's weights; returns the ``policy/`` metrics of the step.

    The loss is ``Σ weight · (importance · objective + Σ coefficient · penalty)`` over all terms. Weights are shares of
    the whole step, so however the terms are spread over passes, the sum of their gradients is that of one pass. Passes
    in which every advantage is 0 are computed for the metrics alone, unless a penalty has a gradient there. ``version``
    is that of the policy's weights. Raises ``RunError`` where a pass needs more memory than the device has.
    """
    metrics = PolicyMetrics()
    penalised = any(penalty.coefficient for penalty in loss.penalties)
    for work in passes:
        learns = penalised or bool(np.any(batch.advantage[work.targets_N]))
        try:
            with limited_threads(policy.size, work.ids_RT.size), torch.set_grad_enabled(learns):
                _backward(policy, batch, work, loss, version, metrics)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"a pass of {work.ids_RT.size} tokens does not fit the memory of {policy.device}",
                fix="lower training.tokens_per_batch",
            ) from error
    return metrics.result()


def _backward(policy: Policy, batch: TrainBatch, work: Pass, loss: Loss, version: int, metrics: PolicyMetrics) -> None:
    scores = policy.score(work, batch.targets)
    learner_N = scores.logprob_N.detach()

    def column(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values[work.targets_N]).to(learner_N)

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
    penalties: dict[str, Tensor] = {}
    for penalty in loss.penalties:
        of_terms = penalty(PenaltyTerms(scores.logprob_N, scores.entropy_N, behaviour_N, extra))
        total = total + penalty.coefficient * (of_terms * weight_N).sum()
        penalties[penalty.metric] = of_terms.detach()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    metrics.add(
        loss=total.detach(),
        log_ratio_N=learner_N - behaviour_N,
        entropy_N=scores.entropy_N.detach(),
        clipped_N=made.clipped,
        means=penalties,
    )
