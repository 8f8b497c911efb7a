"""The policy under training: a Hugging Face model that scores the loss terms of a pass."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.training.attention import ForestAttention
from agentrl.training.scoring import Scores, score

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from agentrl.training.contract import Ints
    from agentrl.training.passes import Pass
    from agentrl.training.terms import Terms

__all__ = ["Policy"]


class Policy:
    """``model`` without dropout, in bfloat16 autocast where ``autocast`` says so."""

    def __init__(self, model: PreTrainedModel, *, autocast: bool = False) -> None:
        self.model = model
        self.model.train(False)
        self._autocast = autocast

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def score(self, work: Pass, terms: Terms) -> Scores:
        """Log-probability and entropy of each loss term of ``work``, at its own temperature."""
        columns, column = np.unique(work.position, return_inverse=True)
        temperatures, kind = np.unique(terms.temperature[work.terms], return_inverse=True)
        # one distribution for each position and temperature, however many tokens were drawn from it
        drawn = (work.row * len(columns) + column) * len(temperatures) + kind
        wanted, row = np.unique(drawn, return_inverse=True)
        place, temperature = wanted // len(temperatures), temperatures[wanted % len(temperatures)]
        logits = self._logits(work, columns).flatten(0, 1)
        if not np.array_equal(place, np.arange(len(logits))):
            logits = logits[self._tensor(place)]
        if np.any(temperature != 1.0):
            logits = logits / self._tensor(temperature)[:, None].to(logits.dtype)
        return score(logits, self._tensor(row), self._tensor(terms.token[work.terms]))

    def _logits(self, work: Pass, columns: Ints) -> Tensor:
        """Shape (rows, columns, vocabulary): only positions that predict a term meet the vocabulary."""
        layout: dict[str, Any] = {}  # plain rows are what a model expects without being told
        if work.subtree_end is not None:
            layout["position_ids"] = self._tensor(work.depth)
            layout["forest"] = ForestAttention(work.depth[0], work.subtree_end)
        with self._precision():
            output = self.model(
                input_ids=self._tensor(work.ids), logits_to_keep=self._tensor(columns), use_cache=False, **layout
            )
        logits: Tensor = output.logits
        return logits

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._autocast else nullcontext()

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
