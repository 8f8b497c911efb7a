"""The gradient of the forest is that of separate rows through the plain Hugging Face forward."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder, chain, groups_of_one_turn, wandering_groups
from tests.learner.models import VOCABULARY, gemma3, of_kind, qwen3, takes_forest
from tests.learner.reference import forest_gradient, reference_gradient, relative_difference, rows_gradient

from agentrl.algorithms.batch import build_batch
from agentrl.learner import packing, policy
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


def assert_exact(groups, *, kind="full", tokens_per_batch=8192, parts=None) -> None:
    algorithm = grpo(**(parts or {}))
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


@pytest.mark.parametrize(
    "parts",
    [
        {"correction": "truncated"},
        {"normalisation": "token", "advantage": {"scale": "none"}},
        {"normalisation": {"name": "constant", "length": 32}, "credit": {"discount": 0.9}},
        {"objective": {"clip_low": 0.01, "clip_high": 0.02, "dual_clip": None}},
    ],
)
def test_other_parts(parts):
    assert_exact(wandering_groups(random.Random(6), VOCABULARY), parts=parts)


@pytest.mark.parametrize("kind", ["full", "tied", "scaled logits"])
def test_a_vocabulary_computed_by_chunks(kind, monkeypatch):
    monkeypatch.setattr(policy, "MAX_LOGITS", 7 * VOCABULARY)
    assert_exact(wandering_groups(random.Random(8), VOCABULARY), kind=kind)


@pytest.mark.parametrize("tokens_per_batch", [40, 8192])
def test_padded_rows_give_it_too(tokens_per_batch):
    groups = wandering_groups(random.Random(7), VOCABULARY, calls=4)
    _, gradient = rows_gradient(model("sliding"), groups, grpo(), tokens_per_batch)
    _, expected = reference_gradient(model("sliding"), groups, grpo())
    assert relative_difference(gradient, expected) < EXACT
