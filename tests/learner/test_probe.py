"""Which models take the forest, and what becomes of those that do not."""

from __future__ import annotations

import random

import pytest
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import wandering_groups
from tests.learner.models import VOCABULARY, gemma3, of_kind, qwen3
from tests.learner.reference import reference_gradient, relative_difference, rows_gradient

from agentrl.learner.attention import NAME
from agentrl.learner.probe import probe_forest

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SINKS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}
STATES = {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 1}


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
        ("mamba2", STATES, "it has layers of type linear_attention"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "logprobs of a forest differ from those of separate rows by"),
        ("gemma2", {"sliding_window": 9, "query_pre_attn_scalar": 8}, "its attention needs softcap"),
    ],
)
def test_other_models_are_left_as_they_were_and_the_reason_is_told(kind, sizes, reason):
    model = of_kind(kind, **sizes)
    before = model.config._attn_implementation
    told = probe_forest(model)
    assert told is not None
    assert told.startswith("the model is trained on padded rows")
    assert reason in told
    assert model.config._attn_implementation == before


def test_a_recurrent_model_trains_on_padded_rows():
    model = of_kind("mamba2", **STATES).double()
    groups = wandering_groups(random.Random(0), VOCABULARY)
    _, gradient = rows_gradient(model, groups, grpo())
    _, expected = reference_gradient(model, groups, grpo())
    assert relative_difference(gradient, expected) < 1e-5
