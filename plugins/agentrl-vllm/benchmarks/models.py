"""Models that know nothing and never stop: a completion is as long as its limit, and plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.training_runs import untrained_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl.inference.model_folder import no_progress_bars
from agentrl.testing.parts import model_folder

__all__ = ["endless_model"]

_CONSTANT = 1.0
"""In one dimension of every embedding: fifty times what is in the others, so that it is there behind all layers."""
_AGAINST = -10.0
"""In that dimension of the head, for tokens that are not to be said."""


def endless_model(folder: Path, *, layers: int = 2, **sizes: int) -> Path:
    """A model like ``tiny`` that never says a special token; ``sizes`` are keys of its config."""
    torch.manual_seed(0)
    tiny = model_folder("tiny")
    with no_progress_bars():
        untrained_model(tiny, folder, layers=layers, **sizes)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        silent = sorted(AutoTokenizer.from_pretrained(tiny).added_tokens_decoder)
        with torch.no_grad():
            model.get_input_embeddings().weight[:, 0] = _CONSTANT
            model.get_output_embeddings().weight[silent, 0] = _AGAINST
        model.save_pretrained(folder)
    return folder
