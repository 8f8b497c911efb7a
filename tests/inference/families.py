"""A small random model of each family, with the switches of its config on."""

from __future__ import annotations

from typing import Any

import torch
from tests.inference.models import VOCABULARY
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

__all__ = ["FAMILY_MODELS", "family_model"]

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_BOTH = ["sliding_attention", "full_attention"]
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0], "long_factor": [3.0] * 3}
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}

FAMILY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": _LLAMA3 | {"original_max_position_embeddings": 64, "rope_theta": 1e4}}),
    "llama-biases-tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral-window": ("mistral", {"sliding_window": 9}),
    "qwen2-yarn-tied": ("qwen2", {"head_dim": None, "tie_word_embeddings": True, "rope_parameters": _YARN}),
    "qwen3-windows": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0, "layer_types": _BOTH},
    ),
    "qwen3-linear": ("qwen3", {"rope_parameters": _LINEAR, "attention_bias": True}),
    "smollm3-unrotated": (
        "smollm3",
        {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 7, "layer_types": _BOTH},
    ),
    "gemma": ("gemma", {"num_key_value_heads": 1}),
    "gemma2-caps": (
        "gemma2",
        {
            "sliding_window": 8,
            "layer_types": _BOTH,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "sliding_window": 8,
            "layer_types": _BOTH,
            "query_pre_attn_scalar": 12,
            "final_logit_softcapping": 5.0,
            "rope_parameters": {"sliding_attention": _DEFAULT, "full_attention": _LINEAR},
        },
    ),
    "phi3-window": ("phi3", {"sliding_window": 9}),
    "phi3-partial-long": (
        "phi3",
        {
            "num_attention_heads": 4,
            "original_max_position_embeddings": 128,
            "partial_rotary_factor": 0.75,
            "rope_parameters": _LONG | {"partial_rotary_factor": 0.75},
        },
    ),
    "olmo-clipped": ("olmo", {"clip_qkv": 0.8}),
    "olmo2": ("olmo2", {}),
    "olmo3-windows": (
        "olmo3",
        {
            "sliding_window": 8,
            "layer_types": _BOTH,
            "rope_parameters": {"sliding_attention": _DEFAULT, "full_attention": _YARN},
        },
    ),
    "granite-multipliers": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.5,
            "tie_word_embeddings": True,
        },
    ),
}
"""By a name: the ``model_type``, and what its config has beside small sizes."""


def family_model(name: str) -> PreTrainedModel:
    """The model of a name, with biases and norms that differ from their first values."""
    kind, switches = FAMILY_MODELS[name]
    torch.manual_seed(sorted(FAMILY_MODELS).index(name))
    sizes = {key: value for key, value in (_SIZES | switches).items() if key != "head_dim" or value is not None}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()
