"""The value head: what the learner expects of a position, read from the policy's hidden states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentrl.config.training import TrainingSection
from agentrl.learner.ranks import Ranks

__all__ = ["ValueHead"]


class ValueHead:
    """A linear map from a hidden state of ``model`` to a number, with an AdamW of its own.

    It begins at 0, so that its first gradient leaves the policy alone. Its weights are no part of the model: no engine
    gets them, and a model folder does not hold them.
    """

    def __init__(
        self, model: PreTrainedModel, training: TrainingSection, factor: float, ranks: Ranks | None = None
    ) -> None:
        """``factor`` is its learning rate over that of the policy; each of ``ranks`` has the whole head."""
        self._ranks = Ranks.alone() if ranks is None else ranks
        size: int = model.config.get_text_config().hidden_size
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype, device=model.device))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype, device=model.device))
        self._factor = factor
        self._most = training.max_grad_norm
        self._adamw = torch.optim.AdamW([self.weight, self.bias], weight_decay=0.0)

    def __call__(self, hidden_UE: Tensor) -> Tensor:
        """Return the value of each of the hidden states, shape (states,)."""
        return hidden_UE.to(self.weight.dtype) @ self.weight + self.bias

    def step(self, rate: float) -> dict[str, float]:
        """Update it from its gradient, which is dropped, where the policy's learning rate is ``rate``.

        The gradient is clipped as the policy's is; one that is NaN or infinite changes nothing. Returns metrics by
        name.
        """
        for parameter in (self.weight, self.bias):
            parameter.grad = self._ranks.add_up(
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
        norm = float(nn.utils.clip_grad_norm_([self.weight, self.bias], self._most))
        if math.isfinite(norm) and norm > 0.0:
            self._adamw.param_groups[0]["lr"] = rate * self._factor
            self._adamw.step()
        self._adamw.zero_grad()
        return {"value/grad_norm": norm}

    def states(self) -> Mapping[Any, dict[str, Any]]:
        """Return the moments of each parameter, by their names: the optimiser's own dictionaries."""
        return self._adamw.state

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes up: the weights, and the optimiser's moments."""
        weights = {"weight": self.weight.detach(), "bias": self.bias.detach()}
        return {**weights, "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
            self.bias.copy_(state["bias"])
        self._adamw.load_state_dict(state["adamw"])
