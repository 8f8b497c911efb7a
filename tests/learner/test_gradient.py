"""The gradient of the forest is that of separate rows through the plain Hugging Face forward."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import build, grpo
from tests.algorithms.episodes import Recorder, chain, groups_of_one_turn, wandering_groups
from tests.learner.models import VOCABULARY, gemma3, in_small_blocks, of_kind, qwen3, takes_forest
from tests.learner.reference import forest_gradient, reference_gradient, relative_difference, rows_gradient

from agentrl.algorithms.batch import build_batch
from agentrl.learner import packing
from agentrl.learner.gradient import accumulate_gradient
from agentrl.learner.packing import pack
from agentrl.learner.policy import Policy
from agentrl.plugins import Plugins
from agentrl.rollout.contract import Group

EXACT = 1e-6
GRPO = grpo()


@cache
def model(kind: str):
    models = {
        "full": qwen3,
        "tied": lambda: qwen3(tied=True),
        "sliding": lambda: qwen3(window=5),
        "gemma": gemma3,
        "scaled logits": lambda: of_kind("granite", logits_scaling=4.0).double(),
    }
    return models[kind]()


def assert_exact(groups, *, kind="full", tokens_per_batch=8192) -> None:
    algorithm = GRPO
    loss, gradient = forest_gradient(takes_forest(model(kind)), groups, algorithm, tokens_per_batch)
    expected_loss, expected = reference_gradient(model(kind), groups, algorithm)
    assert loss == pytest.approx(expected_loss, rel=EXACT)
    assert relative_difference(gradient, expected) < EXACT


def shared_prompts(seed=0) -> list[Group]:
    return groups_of_one_turn(random.Random(seed), VOCABULARY, groups=3, size=4, prompt=11, longest=9)


@pytest.mark.parametrize("kind", ["full", "tied", "sliding", "gemma"])
def test_groups_that_share_a_prompt(kind):
    assert_exact(shared_prompts(), kind=kind)


@pytest.mark.parametrize("kind", ["full", "tied", "sliding", "gemma"])
def test_branches_and_temperatures(kind):
    assert_exact(wandering_groups(random.Random(3), VOCABULARY, groups=3, size=4), kind=kind)


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from([64, 8192]), st.sampled_from([4, 160]))
def test_whatever_conversations_branch_like(seed, tokens_per_batch, tile):
    groups = wandering_groups(random.Random(seed), VOCABULARY, calls=4)
    assume(build_batch(groups, GRPO)[0].advantage.any())  # else no parameter has a gradient
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TILE", tile)
        assert_exact(groups, kind="sliding", tokens_per_batch=tokens_per_batch)


def test_conversations_of_several_turns():
    source = random.Random(1)
    prompt = Recorder(source, VOCABULARY).ids(9)
    episodes = [chain(Recorder(source, VOCABULARY), prompt, turns=1 + n).episode(float(n), n) for n in range(4)]
    assert_exact([Group(0, tuple(episodes))])


def test_equal_samples_count_as_often_as_they_were_drawn():
    source = random.Random(2)
    episodes = []
    for sample, ids in enumerate([[5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 9]]):
        recorder = Recorder(source, VOCABULARY)
        recorder.call([1, 2, 3], ids)
        episodes.append(recorder.episode(float(ids == [5, 9]), sample))
    assert_exact([Group(0, tuple(episodes))])


@pytest.mark.parametrize("kind", ["full", "sliding"])
@pytest.mark.parametrize("tokens_per_batch", [24, 40, 64])
def test_trees_cut_into_bins(kind, tokens_per_batch):
    assert_exact(shared_prompts(4), kind=kind, tokens_per_batch=tokens_per_batch)
    assert_exact(wandering_groups(random.Random(5), VOCABULARY, calls=4), kind=kind, tokens_per_batch=64)


OF_EPISODES = [
    {"name": entry.name}
    for entry in Plugins().entries("algorithms")
    if entry.name not in ("distill", "ppo")  # What models score first has tests of its own.
]
REINFORCE = {"name": "rloo", "normalisation": "token"}
OTHER_PARTS = [
    {"name": "dr_grpo", "credit": {"discount": 0.9}, "normalisation": {"length": 32}},
    {"name": "grpo", "objective": {"clip_low": 0.01, "clip_high": 0.02, "dual_clip": None}, "credit": "call"},
    {"name": "reinforce++", "advantage": {"baseline": "group"}, "credit": "length_neutral"},
    {"name": "grpo", "correction": {"name": "decoupled", "proximal": "interpolated"}},
    {"name": "grpo", "correction": {"name": "truncated", "cap": 1.1, "level": "sequence"}},
    {"name": "gspo", "objective": {"clip_low": 0.05, "clip_high": 0.05}},
    {"name": "cispo", "objective": {"cap": 1.05, "floor": 0.95}},
    {"name": "dppo", "objective": {"divergence": "kl", "threshold": 1e-5}},
    {"name": "dppo", "objective": {"threshold": 1e-3}},
    {**REINFORCE, "correction": {"name": "masked", "cap": 1.1}},
    {**REINFORCE, "correction": {"name": "masked", "cap": 1.1, "level": "sequence"}},
    {**REINFORCE, "correction": {"name": "icepop", "low": 0.9, "high": 1.1}},
    {**REINFORCE, "correction": "decoupled", "shaping": [{"name": "over_long", "longest": 12, "margin": 9}]},
    {
        "name": "dr_grpo",
        "filter": {"name": "reward_bounds", "low": 0.1, "high": 0.9},
        "shaping": {"name": "clip", "low": 0.2},
    },
]


@pytest.mark.parametrize("algorithm", [*OF_EPISODES, *OTHER_PARTS], ids=str)
def test_every_algorithm_over_branches_temperatures_and_versions(algorithm):
    newest = 3
    groups = wandering_groups(random.Random(6), VOCABULARY, groups=3, newest=newest)
    built = build(algorithm)
    if not built.shaping and not built.filter:
        assert_mixed(build_batch(groups, built)[0])
    loss, gradient = forest_gradient(takes_forest(model("full")), groups, built, 96, version=newest)
    expected_loss, expected = reference_gradient(model("full"), groups, built, version=newest)
    assert loss == pytest.approx(expected_loss, rel=EXACT)
    assert relative_difference(gradient, expected) < EXACT


@pytest.mark.parametrize(("cap", "masked"), [(1e-9, 1.0), (1e9, 0.0)])
def test_what_a_correction_leaves_out_is_counted(cap, masked):
    groups = wandering_groups(random.Random(6), VOCABULARY)
    batch, _ = build_batch(groups, built := build({**REINFORCE, "correction": {"name": "masked", "cap": cap}}))
    passes = pack(batch.paths, batch.targets, 64, forest=True)
    metrics = accumulate_gradient(Policy(takes_forest(model("full"))), batch, passes, built.loss).metrics
    assert metrics["policy/masked"] == masked
    assert metrics["policy/weight_mean"] == pytest.approx((1 - masked) * metrics["policy/ratio_mean"])


def assert_mixed(batch):
    """The episodes try what they are for: calls of several tokens, paths that share a beginning, several versions."""
    assert np.unique(batch.version).size > 2
    assert np.bincount(batch.call).max() > 2
    assert np.unique(batch.targets.temperature).size > 1


@pytest.mark.parametrize("kind", ["full", "tied", "scaled logits"])
def test_a_vocabulary_computed_by_chunks(kind, monkeypatch):
    in_small_blocks(monkeypatch)
    assert_exact(wandering_groups(random.Random(8), VOCABULARY), kind=kind)


@pytest.mark.parametrize("tokens_per_batch", [40, 8192])
def test_padded_rows_give_it_too(tokens_per_batch):
    groups = wandering_groups(random.Random(7), VOCABULARY, calls=4)
    _, gradient = rows_gradient(model("sliding"), groups, grpo(), tokens_per_batch)
    _, expected = reference_gradient(model("sliding"), groups, grpo())
    assert relative_difference(gradient, expected) < EXACT
