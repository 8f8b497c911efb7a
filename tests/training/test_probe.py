"""Which models take the forest, and what becomes of those that do not."""

from __future__ import annotations

import random

import pytest
import torch
from tests.training.algorithms import grpo
from tests.training.episodes import wandering_groups
from tests.training.models import VOCABULARY, gemma3, qwen3
from tests.training.reference import reference_gradient, relative_difference, rows_gradient
from transformers import AutoConfig, AutoModelForCausalLM

from agentrl.training.attention import NAME
from agentrl.training.probe import probe_forest

SIZES = {
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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def of_kind(kind, **sizes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **sizes)).eval()


@pytest.mark.parametrize("model", [qwen3, lambda: qwen3(window=7), lambda: qwen3(tied=True), gemma3])
def test_standard_attention_takes_the_forest(model):
    made = model()
    assert probe_forest(made) is None
    assert made.config._attn_implementation == NAME


@pytest.mark.parametrize(("kind", "sizes"), [("llama", {}), ("mistral", {"sliding_window": 9}), ("qwen3_moe", EXPERTS)])
def test_so_do_its_relatives(kind, sizes):
    assert probe_forest(of_kind(kind, **sizes)) is None


@pytest.mark.parametrize(
    ("kind", "sizes", "reason"),
    [
        (
            "gpt_oss",
            {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9},
            "its attention needs s_aux",
        ),
        ("mamba2", {"num_heads": 4, "state_size": 4, "n_groups": 1}, "it has layers of type linear_attention"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "logprobs of a forest differ from those of separate rows by"),
        ("gemma2", {"sliding_window": 9, "query_pre_attn_scalar": 8}, "its attention needs softcap"),
    ],
)
def test_other_models_are_left_as_they_were_and_the_reason_is_told(kind, sizes, reason):
    sizes = sizes | ({"head_dim": 16} if kind == "mamba2" else {})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | sizes)).eval()
    before = model.config._attn_implementation
    told = probe_forest(model)
    assert told is not None
    assert told.startswith("the model is trained on padded rows")
    assert reason in told
    assert model.config._attn_implementation == before


def test_a_recurrent_model_trains_on_padded_rows():
    torch.manual_seed(0)
    sizes = SIZES | {"head_dim": 16, "num_heads": 4, "state_size": 4, "n_groups": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba2", **sizes)).eval().double()
    groups = wandering_groups(random.Random(0), VOCABULARY)
    _, gradient = rows_gradient(model, groups, grpo())
    _, expected = reference_gradient(model, groups, grpo())
    assert relative_difference(gradient, expected) < 1e-5
