"""Loading a model to train, and the type that it computes in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from agentrl.errors import ConfigError, one_line
from agentrl.inference.merging import load_whole

__all__ = ["load_model", "precision_on"]


def load_model(folder: Path) -> PreTrainedModel:
    """Load the model in ``folder`` into the CPU's memory, in float32; an adapter is merged into its base.

    Raises ``ConfigError`` for a folder that holds no causal language model, and an adapter that does not fit its base.
    """
    try:
        model = load_whole(folder, torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model folder {folder} does not load as a causal language model: {one_line(error)}",
            fix="name a folder that `save_pretrained` wrote",
        ) from error
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the folder's own may not be savable
    return model


def precision_on(device: torch.device, precision: str) -> torch.dtype:
    """The type that ``training.precision`` means on ``device``, of the weights and of what is computed with them."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32
