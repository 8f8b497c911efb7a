"""Gradient checkpointing: the same gradient, for less memory."""

from __future__ import annotations

import random

import pytest
import torch
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import wandering_groups
from tests.learner.models import VOCABULARY, of_kind
from tests.learner.reference import forest_gradient, rows_gradient

from agentrl.errors import ConfigError
from agentrl.learner.probe import probe_forest
from agentrl.learner.recompute import recompute_layers


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma3_text"])
def test_the_gradient_through_the_forest_and_through_rows_is_the_same_bits(kind):
    groups = wandering_groups(random.Random(1), VOCABULARY, groups=2, size=3)
    for forest, gradient in ((True, forest_gradient), (False, rows_gradient)):
        kept = []
        for recomputed in (False, True):
            torch.manual_seed(0)
            model = of_kind(kind)
            if forest:
                assert probe_forest(model) is None
            if recomputed:
                recompute_layers(model)
            kept.append(gradient(model, groups, grpo()))
        (loss, plain), (again, saved) = kept
        assert loss == again
        assert plain.keys() == saved.keys()
        assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_layers_keep_their_inputs_alone():
    ids = torch.arange(64)[None] % VOCABULARY

    def kept(model):
        found = {}

        def pack(tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(ids, use_cache=False)
        own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        return sum(size for place, size in found.items() if place not in own)

    whole = of_kind("qwen3")
    before = kept(whole)
    recompute_layers(whole)
    assert kept(whole) < before / 3


def test_a_model_without_layers_to_compute_again_is_refused():
    with pytest.raises(ConfigError, match="Linear has no layers that can be computed again"):
        recompute_layers(torch.nn.Linear(2, 2))
