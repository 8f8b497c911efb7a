"""The learner's weights as an inference backend takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from agentrl.training.folder import save_model

__all__ = ["LearnerWeights"]


@dataclass(frozen=True, slots=True)
class LearnerWeights:
    """A view of the weights, not a copy: valid until the learner steps again."""

    version: int
    model: PreTrainedModel
    source: Path
    """The folder whose tokenizer goes with the weights."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of every parameter; one that is tied to others comes once, under its first name."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model folder that ``AutoModelForCausalLM`` loads, tokenizer files included."""
        save_model(self.model, self.source, folder)
