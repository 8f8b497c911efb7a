"""The policy under training: a Hugging Face model that scores the loss terms of a pass."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentrl.learner.attention import NAME, ForestAttention
from agentrl.learner.scoring import Distributions, Scores, score

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from agentrl.algorithms.contract import Floats, Ints
    from agentrl.algorithms.terms import Terms
    from agentrl.learner.passes import Pass

__all__ = ["Policy"]


class Policy:
    """``model`` without dropout, in bfloat16 autocast where ``autocast`` says so."""

    def __init__(self, model: PreTrainedModel, *, autocast: bool = False) -> None:
        self.model = model
        self.model.train(False)
        self.size: int = model.num_parameters()
        """How many parameters the model has."""
        self._autocast = autocast
        self._head = _plain_head(model)

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
        distributions = self._distributions(work, columns, place, temperature)
        return score(distributions, self._tensor(row), self._tensor(terms.token[work.terms]))

    def _distributions(self, work: Pass, columns: Ints, place: Ints, temperature: Floats) -> Distributions:
        """Those at ``place`` in (rows, columns) of the pass: only they meet the vocabulary."""
        features = self._features(work, columns).flatten(0, 1)
        if not np.array_equal(place, np.arange(len(features))):
            features = features[self._tensor(place)]
        return Distributions(
            features,
            None if np.all(temperature == 1.0) else self._tensor(temperature)[:, None],
            self._to_logits,
            self.model.config.get_text_config().vocab_size,
        )

    def _features(self, work: Pass, columns: Ints) -> Tensor:
        """Hidden states, (rows, columns, size), or logits already where the model's head is not a plain one."""
        inputs: dict[str, Any] = {"input_ids": self._tensor(work.ids), "use_cache": False}
        if work.subtree_end is not None:  # plain rows are what a model expects without being told
            inputs["position_ids"] = self._tensor(work.depth)
            inputs["forest"] = ForestAttention(work.depth[0], work.subtree_end)
        kept = self._tensor(columns)
        features: Tensor
        with self._precision():
            if self._head is None:
                features = self.model(**inputs, logits_to_keep=kept).logits
            else:
                features = self.model.base_model(**inputs).last_hidden_state[:, kept]
        return features

    def _to_logits(self, features: Tensor) -> Tensor:
        if self._head is None:
            return features
        with self._precision():
            logits: Tensor = self._head(features)
        return logits

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._autocast else nullcontext()

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@torch.no_grad()
def _plain_head(model: PreTrainedModel) -> nn.Module | None:
    """The module that takes ``model.base_model``'s hidden states to its logits; ``None`` where more happens to them.

    Some models scale or cap their logits after it, which a few positions show.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or model.base_model is model:
        return None
    run = np.arange(4)
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(run)[None].to(model.device), "use_cache": False}
    if model.config._attn_implementation == NAME:
        inputs["forest"] = ForestAttention(run, np.full(4, 4))
    plain, logits = head(model.base_model(**inputs).last_hidden_state), model(**inputs).logits
    return head if torch.allclose(plain, logits.to(plain.dtype), rtol=1e-4, atol=1e-5) else None
