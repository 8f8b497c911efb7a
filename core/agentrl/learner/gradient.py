"""The policy gradient of a step, added up over its passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agentrl.algorithms.algorithm import Algorithm
from agentrl.algorithms.contract import ObjectiveTerms
from agentrl.algorithms.terms import Terms
from agentrl.errors import RunError
from agentrl.learner.intraop import threads_for_pass
from agentrl.learner.metrics import PolicyMetrics
from agentrl.learner.passes import Pass
from agentrl.learner.policy import Policy

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["accumulate_gradient"]


def accumulate_gradient(policy: Policy, algorithm: Algorithm, terms: Terms, passes: Sequence[Pass]) -> dict[str, float]:
    """Add the gradient of the loss to the policy's weights; returns the ``policy/`` metrics of the step.

    The loss is ``Σ weight · correction · objective`` over all terms. Weights are shares of the whole step, so
    however the terms are spread over passes, the sum of their gradients is that of one pass. Passes in which
    every advantage is 0 are only looked at, for the metrics. Raises ``RunError`` where a pass needs more memory
    than the device has.
    """
    metrics = PolicyMetrics()
    for work in passes:
        learns = bool(np.any(terms.advantage[work.terms]))
        try:
            with threads_for_pass(policy.size, work.ids.size), torch.set_grad_enabled(learns):
                _backward(policy, algorithm, terms, work, metrics)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"a pass of {work.ids.size} tokens does not fit the memory of {policy.device}",
                fix="lower training.tokens_per_batch",
            ) from error
    return metrics.result()


def _backward(policy: Policy, algorithm: Algorithm, terms: Terms, work: Pass, metrics: PolicyMetrics) -> None:
    scores = policy.score(work, terms)
    learner = scores.logprob.detach()

    def column(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values[work.terms]).to(learner)

    behaviour = column(terms.logprob)
    anchor = algorithm.correction(learner, behaviour)
    call = torch.from_numpy(terms.call[work.terms]).to(learner.device)
    made = algorithm.objective(ObjectiveTerms(scores.logprob, anchor.logprob, column(terms.advantage), call))
    loss = (made.loss * anchor.weight * column(terms.weight)).sum()
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    metrics.add(loss=loss.detach(), log_ratio=learner - behaviour, entropy=scores.entropy, clipped=made.clipped)
