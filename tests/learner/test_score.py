"""Scores without a gradient: those of a plain forward, however the paths are packed and the vocabulary masked."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import grpo
from tests.learner.models import VOCABULARY, in_small_blocks, of_kind, qwen3, takes_forest

from agentrl.config.training import TrainingSection
from agentrl.errors import RunError
from agentrl.learner import policy
from agentrl.learner.contract import Scores, Targets, TrainBatch
from agentrl.learner.learner import Learner
from agentrl.learner.policy import Policy

STATES = {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 1}
EXACT = 1e-9


def random_paths(source, count=6, longest=30):
    """Paths that share prefixes."""
    prompt, *ends = ([source.randrange(VOCABULARY) for _ in range(size)] for size in (9, *[longest] * count))
    return [np.array(prompt[: source.randint(1, 9)] + end[: source.randint(1, longest)]) for end in ends]


def random_targets(source, paths, *, masked=False, temperatures=(0.7, 1.0, 1.6)):
    """Targets at random positions, several of them at the same; half are under one of three masks where ``masked``."""
    made = []
    for _ in range(40):
        path = source.randrange(len(paths))
        made.append((path, source.randrange(len(paths[path])), source.randrange(VOCABULARY)))
    path, depth, token = (np.array(column) for column in zip(*made, strict=True))
    temperature = np.array([source.choice(temperatures) for _ in made])
    if not masked:
        return Targets(path, depth, token, temperature)
    allowed = np.array([[source.random() < 0.4 for _ in range(VOCABULARY)] for _ in range(3)])
    mask = np.array([source.randrange(-1, 3) for _ in made])
    for target in np.flatnonzero(mask >= 0):
        allowed[mask[target], token[target]] = True
    return Targets(path, depth, token, temperature, np.packbits(allowed, axis=-1, bitorder="little"), mask)


def plain(model, targets, paths):
    """The same by one plain forward a path and a dense softmax a target."""
    before = model.config._attn_implementation
    if before == policy.NAME:
        model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = [model(torch.from_numpy(path)[None], use_cache=False).logits[0] for path in paths]
    if before == policy.NAME:
        model.set_attn_implementation(before)
    logprob, entropy = [], []
    for target in range(len(targets.token)):
        row = logits[targets.path[target]][targets.depth[target]] / targets.temperature[target]
        if targets.masks is not None and targets.mask[target] >= 0:
            allowed = np.unpackbits(targets.masks[targets.mask[target]], bitorder="little")[:VOCABULARY]
            row = row.masked_fill(torch.from_numpy(allowed == 0), -torch.inf)
        distribution = torch.distributions.Categorical(logits=row)
        logprob.append(distribution.log_prob(torch.tensor(targets.token[target])).item())
        entropy.append(distribution.entropy().item())
    return Scores(np.array(logprob), np.array(entropy))


def assert_equal(found, expected):
    np.testing.assert_allclose(found.logprob, expected.logprob, rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.entropy, expected.entropy, rtol=0, atol=EXACT)


@pytest.fixture(scope="module")
def model():
    return takes_forest(qwen3(window=7)).train(False)


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.sampled_from([39, 64, 8192]))
def test_scores_are_those_of_a_plain_forward(model, seed, masked, forest, tokens_per_batch):
    source = random.Random(seed)
    paths = random_paths(source)
    targets = random_targets(source, paths, masked=masked)
    if not forest:
        model.set_attn_implementation("sdpa")
    found = Policy(model).score_paths(targets, paths, tokens_per_batch)
    takes_forest(model)
    assert_equal(found, plain(model, targets, paths))


def test_a_recurrent_model_is_scored_in_rows():
    made, source = of_kind("mamba2", **STATES).double().train(False), random.Random(1)
    paths = random_paths(source)
    targets = random_targets(source, paths, masked=True)
    assert not Policy(made).takes_forest
    found, expected = Policy(made).score_paths(targets, paths, 8192), plain(made, targets, paths)
    np.testing.assert_allclose(found.logprob, expected.logprob, rtol=0, atol=1e-5)


def test_a_masked_vocabulary_computed_by_chunks(model, monkeypatch):
    source = random.Random(2)
    paths = random_paths(source)
    targets = random_targets(source, paths, masked=True)
    in_small_blocks(monkeypatch)
    assert_equal(Policy(model).score_paths(targets, paths, 8192), plain(model, targets, paths))


def test_the_gradient_under_a_mask_is_that_of_a_dense_softmax(model):
    (path,) = random_paths(random.Random(3), count=1)
    allowed = np.zeros((1, VOCABULARY), dtype=bool)
    allowed[0, [3, 5, 40]] = True
    masks = np.packbits(allowed, axis=-1, bitorder="little")
    targets = Targets(
        np.zeros(2, int), np.array([1, 4]), np.array([5, 40]), np.array([1.0, 0.8]), masks, np.zeros(2, int)
    )
    made = Policy(model)
    (work,) = policy.pack([path], targets, 8192, forest=True)

    def gradient(logprobs):
        model.zero_grad()
        logprobs.sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    found = gradient(made.score(work, targets).logprob_N)
    model.set_attn_implementation("sdpa")
    logits = (
        model(torch.from_numpy(path)[None], use_cache=False).logits[0][[1, 4]]
        / torch.tensor(targets.temperature)[:, None]
    )
    dense = logits.masked_fill(~torch.from_numpy(allowed), -torch.inf).log_softmax(-1)
    expected = gradient(dense[[0, 1], [5, 40]])
    takes_forest(model)
    model.zero_grad()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def learner(folder, chat_tokenizer, **training):
    qwen3().float().save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return Learner(folder, TrainingSection(**training), grpo().loss, seed=0)


def test_the_learner_scores_without_a_trace(tmp_path, chat_tokenizer):
    made, source = learner(tmp_path, chat_tokenizer), random.Random(4)
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    paths = random_paths(source)
    targets = random_targets(source, paths, masked=True)
    found, expected = made.score(targets, paths), plain(made.model, targets, paths)
    np.testing.assert_allclose(found.logprob, expected.logprob, rtol=0, atol=1e-5)
    assert found.logprob.dtype == found.entropy.dtype == np.float64
    assert made.version == 0
    for name, parameter in made.model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name])


def test_bfloat16_scores_are_those_of_its_weights_but_for_rounding(tmp_path, chat_tokenizer):
    made, source = learner(tmp_path, chat_tokenizer, precision="bfloat16"), random.Random(5)
    paths = random_paths(source)
    targets = random_targets(source, paths)
    expected = plain(copy.deepcopy(made.model).float(), targets, paths).logprob
    assert 1e-4 < np.abs(made.score(targets, paths).logprob - expected).max() < 0.1


def test_nothing_to_score_has_no_scores(tmp_path, chat_tokenizer):
    none = np.zeros(0, dtype=np.int64)
    found = learner(tmp_path, chat_tokenizer).score(Targets(none, none, none, np.zeros(0)), [])
    assert found.logprob.shape == found.entropy.shape == (0,)


def test_a_path_longer_than_a_pass_names_the_setting(tmp_path, chat_tokenizer):
    made = learner(tmp_path, chat_tokenizer, tokens_per_batch=8)
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(RunError, match=r"training\.tokens_per_batch=8 "):
        made.score(Targets(one, one, one, np.ones(1)), [np.arange(9)])


def column(*values):
    return np.array(values, dtype=np.int64)


MASKS = np.packbits(np.eye(8, 48, dtype=bool), axis=-1, bitorder="little")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Targets(column(1), column(0), column(1), np.ones(1)), "not among the 1 given"),
        (Targets(column(-1), column(0), column(1), np.ones(1)), "not among the 1 given"),
        (Targets(column(0), column(3), column(1), np.ones(1)), "beyond the end of its path"),
        (Targets(column(0), column(0), column(1), np.ones(2)), r"'temperature' of a batch has shape \(2,\)"),
        (Targets(column(0), column(0), column(1), np.ones(1), MASKS), "without saying which applies"),
        (Targets(column(0), column(0), column(1), np.ones(1), MASKS, column(2)), "not among those that its mask"),
        (Targets(column(0), column(0), column(60), np.ones(1), MASKS, column(2)), "not among those that its mask"),
    ],
)
def test_targets_that_contradict_themselves_are_refused(targets, message, tmp_path, chat_tokenizer):
    with pytest.raises(ValueError, match=message):
        learner(tmp_path, chat_tokenizer).score(targets, [np.arange(3)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": np.ones(2)}, r"'advantage' of a batch has shape \(2,\) for 1 targets"),
        ({"extra": {"reference": np.ones(2)}}, "'reference' of a batch"),
        ({"labels": ("one", "two")}, "1 paths have 2 labels"),
        ({"policy": "critic"}, "a batch of policy 'critic' was given to the learner of policy 'default'"),
    ],
)
def test_so_are_batches(changes, message, tmp_path, chat_tokenizer):
    targets = Targets(column(0), column(0), column(1), np.ones(1))
    columns = {"logprob": -np.ones(1), "version": column(0), "advantage": np.ones(1), "weight": np.ones(1)}
    batch = TrainBatch((np.arange(3),), targets, **{**columns, "call": column(0), **changes})
    with pytest.raises(ValueError, match=message):
        learner(tmp_path, chat_tokenizer).step(batch)
