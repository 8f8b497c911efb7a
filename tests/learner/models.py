"""Small random models of the kinds that a learner meets."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentrl.learner import policy, vocabulary
from agentrl.learner.attention import NAME
from agentrl.learner.probe import probe_forest

VOCABULARY = 48


def qwen3(*, tied: bool = False, window: int | None = None, layers: int = 3, seed: int = 0) -> PreTrainedModel:
    """A float64 Qwen3; with ``window`` every other layer is a sliding one."""
    torch.manual_seed(seed)
    kinds = ["sliding_attention" if window and index % 2 == 0 else "full_attention" for index in range(layers)]
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        use_sliding_window=window is not None,
        sliding_window=window,
        max_window_layers=0,
        layer_types=kinds,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).double()


def gemma3(window: int = 6) -> PreTrainedModel:
    """A float64 Gemma 3: sliding and full layers with rotary embeddings of their own, tied embeddings."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        sliding_window=window,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        initializer_range=0.3,
    )
    return Gemma3ForCausalLM(config).double()


def of_kind(kind: str, **sizes: object) -> PreTrainedModel:
    """A model of another architecture, small where its configuration has the usual names."""
    torch.manual_seed(0)
    usual = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **usual | sizes)).eval()


def takes_forest(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` switched to forest attention, which it must be able to take."""
    assert model.config._attn_implementation == NAME or probe_forest(model) is None
    return model


def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the vocabulary in blocks of a few rows, of which some are kept for the gradient."""
    monkeypatch.setattr(policy, "MAX_LOGITS", 7 * VOCABULARY)
    for name, rows in (("KEPT", 12), ("BLOCK", 7), ("CACHED", 3)):
        monkeypatch.setattr(vocabulary, name, rows * VOCABULARY)
