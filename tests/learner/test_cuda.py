"""The forest on a GPU, through compiled FlexAttention; skipped where there is none."""

from __future__ import annotations

import random

import pytest
import torch
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import groups_of_one_turn
from tests.learner.models import VOCABULARY, of_kind
from tests.learner.reference import forest_gradient, relative_difference, rows_gradient

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner.learner import Learner
from agentrl.learner.probe import probe_forest

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GRPO = grpo()
SIZES = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 1024}
WINDOWS = {"mistral": {"sliding_window": 40}}


def groups(seed=0, prompt=150):
    return groups_of_one_turn(random.Random(seed), VOCABULARY, groups=3, size=4, prompt=prompt, longest=60)


@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_the_forest_gives_the_gradient_of_rows(kind):
    model = of_kind(kind, **SIZES, **WINDOWS.get(kind, {})).cuda()
    _, expected = rows_gradient(model, groups(), GRPO)
    assert probe_forest(model) is None
    for seed_prompt in (150, 90, 211):  # other lengths take the same compiled kernel
        forest_gradient(model, groups(prompt=seed_prompt), GRPO)
    _, gradient = forest_gradient(model, groups(), GRPO)
    assert relative_difference(gradient, expected) < 1e-3


def test_bfloat16_is_the_default_there(tmp_path):
    of_kind("qwen3", **SIZES).save_pretrained(tmp_path)
    rounded, exact = (
        Learner(tmp_path, training, GRPO.loss, seed=0)
        for training in (TrainingSection(), TrainingSection(precision="float32"))
    )
    assert rounded.rows_because is None
    batch, _ = build_batch(groups(), GRPO)
    left, right = rounded.step(batch).metrics, exact.step(batch).metrics
    assert left["policy/entropy"] == pytest.approx(right["policy/entropy"], rel=0.02)
    assert left["policy/entropy"] != right["policy/entropy"]
    with rounded.lend("a test") as weights:
        assert all(tensor.dtype == torch.bfloat16 for _, tensor in weights.tensors())
