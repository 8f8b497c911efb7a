"""The optimiser: AdamW with clipping and a schedule, which refuses what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from agentrl.config.models import TrainingSection
from agentrl.errors import RunError
from agentrl.learner.intraop import threads_for_pass
from agentrl.learner.schedule import learning_rate

__all__ = ["Optimiser"]

WORK = 32
"""An update takes about as long as so many tokens of a pass."""
PATIENCE = 5
"""Steps in a row whose gradient may be NaN or infinite before the run stops."""


class Optimiser:
    """AdamW (Loshchilov and Hutter 2019) over float32 weights; one-dimensional weights are not decayed."""

    def __init__(self, parameters: Iterable[nn.Parameter], training: TrainingSection) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._size = sum(parameter.numel() for parameter in self._parameters)
        self._training = training
        self._bad_in_a_row = 0
        decayed = [parameter for parameter in self._parameters if parameter.ndim > 1]
        others = [parameter for parameter in self._parameters if parameter.ndim <= 1]
        self._adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=training.learning_rate,
            fused=True,
        )

    def step(self, step: int, loss: float) -> dict[str, float]:
        """Update the weights from their gradients and drop those; ``step`` counts from 0 and sets the learning rate.

        A gradient of exactly zero changes nothing, not even the moments: there was nothing to learn. Where it or
        the ``loss`` is NaN or infinite it is dropped and counted. Raises ``RunError`` when that has happened
        ``PATIENCE`` times in a row.
        """
        rate = learning_rate(self._training, step)
        with threads_for_pass(self._size, WORK):
            norm = float(nn.utils.clip_grad_norm_(self._parameters, self._training.max_grad_norm, foreach=True))
            finite = math.isfinite(norm) and math.isfinite(loss)
            updated = finite and norm > 0.0
            if updated:
                for group in self._adamw.param_groups:
                    group["lr"] = rate
                self._adamw.step()
        self._adamw.zero_grad()
        self._count_bad(finite, step)
        return {"policy/grad_norm": norm, "policy/learning_rate": rate, "policy/updated": float(updated)}

    def _count_bad(self, finite: bool, step: int) -> None:
        self._bad_in_a_row = 0 if finite else self._bad_in_a_row + 1
        if self._bad_in_a_row >= PATIENCE:
            raise RunError(
                f"the loss or its gradient was NaN or infinite in {PATIENCE} steps in a row, up to step {step + 1}",
                fix="lower training.learning_rate, raise training.warmup_steps or set training.precision=float32",
            )

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self._adamw.state_dict(), "bad_in_a_row": self._bad_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adamw.load_state_dict(state["adamw"])
        self._bad_in_a_row = state["bad_in_a_row"]
