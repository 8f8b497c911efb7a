"""A learner, on a model folder of its own: what a step does to weights, and what it says about it."""

from __future__ import annotations

import hashlib
import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder, groups_of_one_turn, wandering_groups
from tests.learner.models import VOCABULARY, of_kind, qwen3
from tests.learner.reference import reference_gradient, sampled_by
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.errors import ConfigError, RunError
from agentrl.learner.learner import Learner
from agentrl.learner.policy import PolicyMetrics
from agentrl.rollout.contract import Group
from agentrl.tokens.contract import Sampled, TokenTree

GRPO = grpo()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chat_tokenizer):
    path = tmp_path_factory.mktemp("model")
    qwen3().float().save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


class GroupLearner(Learner):
    """A learner that is given groups, as the training loop has them."""

    def __init__(self, folder, settings, algorithm):
        super().__init__(folder, settings, algorithm.loss, seed=0)
        self.algorithm = algorithm

    def step(self, groups):
        batch, account = build_batch(groups, self.algorithm)
        return {**account.counts, **super().step(batch).metrics}


def learner(folder, algorithm=GRPO, **training):
    return GroupLearner(folder, TrainingSection(**{"learning_rate": 1e-2, **training}), algorithm)


def shared_prompts(seed=0):
    return groups_of_one_turn(random.Random(seed), VOCABULARY, groups=3, size=4, prompt=9, longest=6)


def state(made):
    with made.lend("a test") as weights:
        return {name: tensor.clone() for name, tensor in weights.tensors()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_what_was_rewarded_becomes_likelier(folder):
    made, groups = learner(folder), []
    for task in range(2):
        prompt, episodes = Recorder(random.Random(task), VOCABULARY).ids(6), []
        for sample in range(4):
            recorder = Recorder(random.Random(sample), VOCABULARY)
            recorder.call(prompt, [task, sample, sample])
            episodes.append(recorder.episode(float(sample == 2), sample, task))
        groups.append(Group(task, tuple(episodes)))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    before = sampled_by(model, groups)
    for _ in range(5):
        made.step(sampled_by(made_model(made, model), groups))
    after = sampled_by(made_model(made, model), groups)
    for group_before, group_after in zip(before, after, strict=True):
        rise = [total(b) - total(a) for a, b in zip(group_before.episodes, group_after.episodes, strict=True)]
        assert max(rise) == rise[2] > 0.1


def made_model(made, model):
    model.load_state_dict(state(made))
    return model


def total(episode):
    return sum(sum(span.sampled.logprobs) for span in episode.tree.spans if span.sampled)


def test_at_learning_rate_zero_sampler_and_learner_agree(folder):
    made = learner(folder, learning_rate=0.0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for seed in range(5):
        metrics = made.step(sampled_by(model, wandering_groups(random.Random(seed), VOCABULARY, groups=4)))
        assert metrics["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert metrics["policy/mismatch_kl"] < 1e-8
        assert metrics["policy/clip_fraction"] == 0.0
    assert same(state(made), state(learner(folder)))


def test_a_step_reports_what_it_trained_on(folder):
    groups = shared_prompts()
    groups.append(Group(0, (replace(groups[0].episodes[0], outcome="failed", reward=None),)))
    metrics = learner(folder, tokens_per_batch=40).step(groups)
    sampled = sum(len(span.ids) for g in groups[:3] for e in g.episodes for span in e.tree.spans if span.sampled)
    assert metrics["tokens/trained"] == sampled
    assert metrics["tokens/forest"] < metrics["tokens/rows"]
    assert metrics["learner/passes"] > 1
    assert metrics["groups/zero_variance"] == 1
    assert metrics["policy/learning_rate"] == 1e-2
    assert metrics["policy/updated"] == 1.0
    assert 0 < metrics["policy/entropy"] < 4
    assert metrics["staleness/max"] == 0
    assert all(isinstance(value, float) for value in metrics.values())


def test_staleness_is_counted_from_each_tokens_version(folder):
    made = learner(folder)
    for age in range(3):
        metrics = made.step(shared_prompts())
        assert metrics["staleness/mean"] == metrics["staleness/max"] == age
    assert made.version == 3


@pytest.mark.parametrize("tokens_per_batch", [20, 40])
def test_many_passes_are_one_batch(folder, tokens_per_batch):
    groups = shared_prompts()
    whole, cut = learner(folder).step(groups), learner(folder, tokens_per_batch=tokens_per_batch).step(groups)
    assert cut["learner/passes"] > whole["learner/passes"]
    for key in ("policy/loss", "policy/grad_norm", "policy/entropy", "policy/mismatch_kl"):
        assert cut[key] == pytest.approx(whole[key], rel=1e-4), key


def test_even_groups_weigh_in_the_metrics_and_the_mean_alone(folder):
    groups = shared_prompts()
    groups += [Group(g.task, tuple(replace(e, reward=0.3) for e in g.episodes)) for g in shared_prompts(1)[:2]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loss, gradient = reference_gradient(model, groups, GRPO)
    metrics = learner(folder).step(groups)
    assert metrics["policy/loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    norm = torch.stack([tensor.norm() for tensor in gradient.values()]).norm()
    assert metrics["policy/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    apart = [learner(folder).step(part) for part in (groups[:3], groups[3:])]
    tokens = [part["tokens/trained"] for part in apart]
    entropy = sum(part["policy/entropy"] * count for part, count in zip(apart, tokens, strict=True)) / sum(tokens)
    assert metrics["policy/entropy"] == pytest.approx(entropy, rel=1e-5)


def test_where_nothing_can_be_learned_weights_stay_and_the_step_counts(folder):
    made = learner(folder, weight_decay=0.1)
    made.step(shared_prompts())
    before = state(made)
    even = [Group(g.task, tuple(replace(e, reward=0.3) for e in g.episodes)) for g in shared_prompts(1)]
    metrics = made.step(even)
    assert metrics["policy/updated"] == metrics["policy/grad_norm"] == 0.0
    assert metrics["policy/entropy"] > 0
    assert made.step([Group(0, ())])["tokens/trained"] == 0
    assert same(before, state(made))
    assert made.version == 3


def impossible(groups):
    """The same episodes, with logprobs that are no numbers."""

    def spoil(tree):
        spoilt = TokenTree()
        for span in tree.spans:
            sampled = span.sampled and Sampled("call-0", (float("nan"),) * len(span.ids), span.sampled.versions, 1.0)
            spoilt._add(replace(span, sampled=sampled))
        return spoilt

    return [Group(g.task, tuple(replace(e, tree=spoil(e.tree)) for e in g.episodes)) for g in groups]


def test_a_gradient_that_is_not_finite_is_dropped_and_stops_the_run_in_the_end(folder):
    made = learner(folder)
    before = state(made)
    for _ in range(4):
        assert made.step(impossible(shared_prompts()))["policy/updated"] == 0.0
    assert same(before, state(made))
    made.step(shared_prompts())
    for _ in range(4):
        made.step(impossible(shared_prompts()))
    with pytest.raises(RunError, match=r"NaN or infinite in 5 steps in a row, up to step 10 .*learning_rate"):
        made.step(impossible(shared_prompts()))


def test_the_mismatch_is_never_negative_and_is_half_the_square_of_a_small_difference():
    for difference in (0.0, 1e-7, -1e-7, 1e-4, -1e-4, 2.0, -2.0):
        metrics = PolicyMetrics()
        log_ratio = torch.full((7,), difference)
        metrics.add(loss=torch.tensor(0.0), log_ratio_N=log_ratio, entropy_N=log_ratio, clipped_N=log_ratio)
        expected = math.expm1(log_ratio[0].item()) - log_ratio[0].item()
        assert metrics.result()["policy/mismatch_kl"] == pytest.approx(expected, rel=1e-6, abs=0.0)
        assert metrics.result()["policy/mismatch_kl"] >= 0.0


def test_a_reward_beyond_single_precision_is_a_gradient_that_is_not_finite(folder):
    made = learner(folder, grpo(advantage={"scale": "none"}))
    groups = [
        Group(g.task, tuple(replace(e, reward=1e200 * (e.reward or 0)) for e in g.episodes)) for g in shared_prompts()
    ]
    before = state(made)
    metrics = made.step(groups)
    assert metrics["policy/updated"] == 0.0
    assert not math.isfinite(metrics["policy/grad_norm"])
    assert same(before, state(made))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_checkpoint_has_the_models_own_dtype_and_its_masters_beside_it(chat_tokenizer, tmp_path, dtype, tied):
    source, checkpoint = tmp_path / "source", tmp_path / "checkpoint"
    qwen3(tied=tied).to(dtype).save_pretrained(source)
    chat_tokenizer.save_pretrained(source)
    whole = learner(source)
    whole.step(shared_prompts())
    whole.save(checkpoint)
    whole.save_state(checkpoint)
    assert (checkpoint / "model.safetensors").stat().st_size == (source / "model.safetensors").stat().st_size
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    stored = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    assert same({name: tensor.to(dtype) for name, tensor in state(whole).items()}, dict(stored.named_parameters()))
    assert whole.model.dtype == torch.float32
    resumed = learner(checkpoint)
    assert not same(state(whole), state(resumed))
    resumed.load_state(checkpoint)
    assert same(state(whole), state(resumed))


def test_a_saved_folder_loads_with_its_tokenizer(folder, tmp_path):
    made = learner(folder)
    made.step(shared_prompts())
    made.save(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert same(state(made), dict(loaded.named_parameters()))
    text = "What is 12 * 34?"
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text) == AutoTokenizer.from_pretrained(folder)(text)
    assert "agentrl" not in (tmp_path / "saved" / "config.json").read_text()
    made.save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_folder_that_cannot_be_written_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    made = learner(folder)
    for save in (made.save, made.save_state):
        with pytest.raises(RunError, match="cannot write") as raised:
            save(tmp_path / "file" / "saved")
        assert "\n" not in str(raised.value)


def test_tied_weights_come_once(tmp_path):
    qwen3(tied=True).float().save_pretrained(tmp_path)
    weights = learner(tmp_path).lend("a test")
    names = [name for name, _ in weights.tensors()]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert weights.version == 0


def test_a_resumed_learner_goes_on_bit_for_bit(folder, tmp_path):
    training = {"schedule": "cosine", "steps": 5, "warmup_steps": 1}
    whole = learner(folder, **training)
    for seed in range(2):
        whole.step(shared_prompts(seed))
    whole.save(tmp_path / "checkpoint")
    whole.save_state(tmp_path / "checkpoint")
    resumed = learner(tmp_path / "checkpoint", **training)
    resumed.load_state(tmp_path / "checkpoint")
    assert resumed.version == 2
    for seed in range(2, 4):
        left, right = whole.step(shared_prompts(seed)), resumed.step(shared_prompts(seed))
        assert {k: v for k, v in left.items() if "seconds" not in k} == {
            k: v for k, v in right.items() if "seconds" not in k
        }
    assert same(state(whole), state(resumed))


def digest(folder):
    """Of the weights after three steps of several passes."""
    made = learner(folder, tokens_per_batch=64)
    for seed in range(3):
        made.step(shared_prompts(seed))
    weights = hashlib.sha256()
    for tensor in state(made).values():
        weights.update(tensor.numpy().tobytes())
    return weights.hexdigest()


@pytest.mark.slow
def test_another_process_learns_the_same_bits(folder):
    code = "import pathlib, sys, torch; torch.set_num_threads(1); from tests.learner.test_learner import digest; "
    code += "print(digest(pathlib.Path(sys.argv[1])))"
    other = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, check=True, text=True, cwd=ROOT
    )
    assert other.stdout.strip() == digest(folder)


def test_bfloat16_computes_in_it_and_lends_what_it_computes_with(folder):
    made = learner(folder, precision="bfloat16")
    exact, rounded = learner(folder).step(shared_prompts()), made.step(shared_prompts())
    assert rounded["policy/entropy"] == pytest.approx(exact["policy/entropy"], rel=0.05)
    assert rounded["policy/entropy"] != exact["policy/entropy"]
    assert all(tensor.dtype == torch.bfloat16 for tensor in state(made).values())
    assert made.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_bfloat16_weights_are_rounded_from_masters_that_steps_too_small_for_them_add_up_in(folder):
    """A step of 1e-5 is below half of what bfloat16 tells apart at 0.01, and a hundred of them are not."""
    made = learner(folder, precision="bfloat16", learning_rate=1e-5)
    first = state(made)
    made.step(shared_prompts())
    moved = [sum(int((state(made)[name] != first[name]).sum()) for name in first)]
    for _ in range(30):
        made.step(shared_prompts())
    moved.append(sum(int((state(made)[name] != first[name]).sum()) for name in first))
    assert moved[0] < moved[1] / 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_run_in_bfloat16_goes_on_bit_for_bit_from_its_masters(chat_tokenizer, tmp_path, dtype, tied):
    source, checkpoint = tmp_path / "source", tmp_path / "checkpoint"
    qwen3(tied=tied).to(dtype).save_pretrained(source)
    chat_tokenizer.save_pretrained(source)
    whole = learner(source, precision="bfloat16", tokens_per_batch=40, learning_rate=1e-4)
    for seed in range(2):
        whole.step(shared_prompts(seed))
    whole.save(checkpoint)
    whole.save_state(checkpoint)
    stored = dict(AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").named_parameters())
    assert all(tensor.dtype == dtype for tensor in stored.values())
    assert same({name: tensor.bfloat16() for name, tensor in stored.items()}, state(whole))
    resumed = learner(checkpoint, precision="bfloat16", tokens_per_batch=40, learning_rate=1e-4)
    resumed.load_state(checkpoint)
    for seed in range(2, 4):
        assert whole.step(shared_prompts(seed))["policy/loss"] == resumed.step(shared_prompts(seed))["policy/loss"]
    assert same(state(whole), state(resumed))
    exact = learner(checkpoint)
    exact.load_state(checkpoint)
    whole.go_back(checkpoint, 7)
    assert same({name: tensor.bfloat16() for name, tensor in state(exact).items()}, state(whole))


def test_a_model_that_cannot_take_the_forest_says_so_and_learns_on_rows(tmp_path):
    sinks = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}
    of_kind("gpt_oss", **sinks).save_pretrained(tmp_path)
    made = learner(tmp_path)
    before = state(made)
    metrics = made.step(shared_prompts())
    assert "trained on padded rows" in made.rows_because
    assert metrics["policy/updated"] == 1.0
    assert metrics["tokens/forest"] >= metrics["tokens/rows"]
    assert not same(before, state(made))


def test_gradients_are_clipped_to_the_norm(folder):
    groups = shared_prompts()
    steps = [learner(folder, max_grad_norm=norm, learning_rate=0.5) for norm in (1e-9, 1e9)]
    assert steps[0].step(groups)["policy/grad_norm"] == steps[1].step(groups)["policy/grad_norm"]


def test_an_episode_longer_than_a_pass_names_the_setting(folder):
    with pytest.raises(RunError, match=r"episode train-\S+ has a context of .* training\.tokens_per_batch=8 "):
        learner(folder, tokens_per_batch=8).step(shared_prompts())


@pytest.mark.parametrize("device", ["gpu", "cuda:7"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigError, match=f"training.device='{device}'"):
        learner(folder, device=device)


def test_a_folder_that_is_no_language_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ConfigError, match="does not load as a causal language model") as raised:
        learner(tmp_path)
    assert "\n" not in str(raised.value)
