"""How large a model is, and what its training takes, known without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentrl.errors import ConfigError, one_line, shortened
from agentrl.learner.dtype import stored_dtype

__all__ = ["ModelSize", "model_size"]

_TRAINED = {"weights": 4, "gradients": 4, "optimiser": 8}
"""Bytes that a parameter takes in the learner: float32, and AdamW's two moments."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of a model."""

    kind: str
    """Its ``model_type``."""
    parameters: int
    kv_values: int | None
    """Numbers that one token takes in the KV cache; ``None`` for layers of another kind than attention."""
    context_length: int | None
    stored_bytes: int
    """Bytes that a parameter takes in the model's folder, and so in a checkpoint's."""

    def learner_bytes(self) -> int:
        """What the learner holds between passes; activations come on top."""
        return self.parameters * sum(_TRAINED.values())

    def engine_bytes(self, tokens: int, width: int) -> int:
        """What an engine holds for ``tokens`` in its KV cache, in numbers of ``width`` bytes."""
        return (self.parameters + tokens * (self.kv_values or 0)) * width

    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on disk: weights, those in float32 too where they differ, and AdamW's moments."""
        masters = 0 if self.stored_bytes == _TRAINED["weights"] else _TRAINED["weights"]
        return self.parameters * (self.stored_bytes + masters + _TRAINED["optimiser"])


def model_size(folder: Path) -> ModelSize:
    """The size of the model in ``folder``, which is built without its weights.

    Raises ``ConfigError`` for one that transformers cannot build.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"model folder {folder} holds no causal language model that transformers knows: "
            f"{shortened(one_line(error))}",
            fix="name a model that AutoModelForCausalLM loads, or update transformers",
        ) from error
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    width = getattr(text, "head_dim", None)
    if width is None and heads and getattr(text, "hidden_size", None):
        width = text.hidden_size // text.num_attention_heads
    layers = getattr(text, "num_hidden_layers", None)
    return ModelSize(
        kind=str(config.model_type),
        parameters=model.num_parameters(),
        kv_values=2 * layers * heads * width if layers and heads and width else None,
        context_length=getattr(text, "max_position_embeddings", None),
        stored_bytes=stored_dtype(folder).itemsize,
    )
