"""A forward over ragged rows, and the one that every model has: its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from agentrl.inference.engine.cache import RowCache

__all__ = ["Batch", "Network", "PlainNetwork"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens to compute: ``Q`` in each of ``B`` rows."""

    ids_BQ: torch.Tensor
    positions_BQ: torch.Tensor
    masks: dict[str, torch.Tensor]
    """Additive masks ``[B, 1, Q, L]`` by type of layer."""
    cache: RowCache
    length: int
    """``L``: all positions are below it."""


class Network(Protocol):
    """Writes a batch's keys and values to its cache."""

    def hidden(self, batch: Batch) -> None:
        """Only that."""
        ...

    def logits(self, batch: Batch) -> torch.Tensor:
        """And logits ``[B, V]`` of each row's last token."""
        ...


class PlainNetwork:
    """The Hugging Face model's own forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def hidden(self, batch: Batch) -> None:
        self._model.base_model(**_arguments(batch))

    def logits(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self._model(**_arguments(batch), logits_to_keep=1).logits
        return logits[:, -1]


def _arguments(batch: Batch) -> dict[str, Any]:
    # Models with one type of layer take a mask of four dimensions as it is, the others one for each type.
    masks = batch.masks
    return {
        "input_ids": batch.ids_BQ,
        "position_ids": batch.positions_BQ,
        "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
        "past_key_values": batch.cache,
        "use_cache": True,
    }
