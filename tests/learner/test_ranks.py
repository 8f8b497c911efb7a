"""A learner over several processes: it learns what one process learns, whoever computes which pass."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.learner import rank_cases
from tests.learner.models import of_kind, qwen3
from tests.learner.rank_processes import RankProcesses
from transformers import AutoModelForCausalLM

from agentrl.errors import ConfigError, HostLostError, RunError
from agentrl.learner import model_writer
from agentrl.learner import ranks as ranks_module
from agentrl.learner.learner import PARTS, STATE
from agentrl.learner.model_writer import write_spread
from agentrl.learner.parts import are_whole
from agentrl.learner.ranks import Ranks
from agentrl.training.checkpoints import is_whole

EXACT = {"float64": (1e-12, 1e-9, 1e-12), "float32": (1e-5, 1e-5, 1e-6)}
"""By how much gradients (of each tensor's norm), weights and losses may differ."""


@pytest.fixture(scope="module")
def processes(warm) -> Iterator[RankProcesses]:
    made = RankProcesses(warm, 4)
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chat_tokenizer):
    path = tmp_path_factory.mktemp("model")
    qwen3(tied=True).float().save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


def check(of_ranks, one, dtype):
    """Every rank has found what one process has."""
    gradient, weight, loss = EXACT[dtype]
    for rank, made in enumerate(of_ranks):
        assert isinstance(made, dict), f"rank {rank}: {made!r}"
        for found, expected in zip(made["gradients"], one["gradients"], strict=True):
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert float((found[name] - tensor).norm()) <= gradient * float(tensor.norm()), name
        for found, expected in zip(made["metrics"], one["metrics"], strict=True):
            assert found.keys() == expected.keys()
            assert found["policy/loss"] == pytest.approx(expected["policy/loss"], rel=loss, abs=loss)
            assert found == of_ranks[0]["metrics"][made["metrics"].index(found)]
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(made["weights"][name], tensor, rtol=0, atol=weight)
        for name in ("logprob", "entropy", "importance"):
            for found, expected in zip(made["terms"], one["terms"], strict=True):
                np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e3 * loss)
        np.testing.assert_allclose(made["scores"].logprob, one["scores"].logprob, rtol=0, atol=1e3 * loss)


CASE = "tests.learner.rank_cases:"


RATES = {"float64": 1e-2, "float32": 1e-5}
"""AdamW makes a whole step of a gradient that is rounding alone: at a high rate that is what float32 would show."""


@pytest.fixture(scope="module")
def by_one(folder):
    """What one process makes of ten batches, by the type that it computes in."""
    return {dtype: rank_cases.alone(folder, "grpo", dtype, {"learning_rate": rate}) for dtype, rate in RATES.items()}


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, "float64"), (2, "float64"), (4, "float64"), pytest.param(4, "float32", marks=pytest.mark.long)],
)
def test_ten_batches_train_as_on_one_process(processes, folder, by_one, size, dtype):
    asked = (folder, "grpo", dtype, {"learning_rate": RATES[dtype]})
    check(processes.run(size, CASE + "train", *asked), by_one[dtype], dtype)


VARIANTS = {
    "trees cut, and layers computed again": ("grpo", {"tokens_per_batch": 40, "gradient_checkpointing": True}),
    "an adapter": ("grpo", {"lora": {"rank": 2}, "tokens_per_batch": 60, "learning_rate": 1e-6}),
    "clipped": ("dapo", {"max_grad_norm": 0.01, "tokens_per_batch": 60}),
    "a sequence's ratio": ("gspo", {"minibatches": 2}),
    "a critic": ("ppo", {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_is_trained_is_trained_as_on_one_process(processes, folder, tmp_path, variant):
    algorithm, training = VARIANTS[variant]
    if "lora" in training:  # one that has learned: the gradient of half of it is 0 in the beginning
        rank_cases.resume(Ranks.alone(), folder, None, "grpo", "float64", {"lora": {"rank": 2}}, 0, 1, tmp_path)
        folder = tmp_path
    one = rank_cases.alone(folder, algorithm, "float64", training, 4)
    check(processes.run(4, CASE + "train", folder, algorithm, "float64", training, 4), one, "float64")


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["all weights", "an adapter"])
def test_bfloat16_is_computed_in_from_float32_masters(processes, folder, lora):
    training = {"precision": "bfloat16", "learning_rate": 1e-5, "lora": lora, "tokens_per_batch": 60}
    one = rank_cases.alone(folder, "grpo", "float32", training, 2)
    for made in processes.run(2, CASE + "train", folder, "grpo", "float32", training, 2):
        assert all(tensor.dtype == torch.float32 for tensor in made["gradients"][0].values())
        for name, tensor in one["weights"].items():
            assert made["weights"][name].dtype == tensor.dtype
            torch.testing.assert_close(made["weights"][name], tensor, rtol=0.01, atol=1e-4)
        for found, expected in zip(made["metrics"], one["metrics"], strict=True):
            assert found["policy/entropy"] == pytest.approx(expected["policy/entropy"], rel=0.01)
            assert found["policy/grad_norm"] == pytest.approx(expected["policy/grad_norm"], rel=0.05)


def test_experts_on_padded_rows_train_and_are_written_as_on_one_process(processes, chat_tokenizer, tmp_path):
    source = tmp_path / "source"
    sizes = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
    of_kind("qwen3_moe", norm_topk_prob=True, **sizes).save_pretrained(source)
    chat_tokenizer.save_pretrained(source)
    training = {"learning_rate": 1e-5, "tokens_per_batch": 60}
    one = rank_cases.alone(source, "grpo", "float32", training, 3)
    check(processes.run(2, CASE + "train", source, "grpo", "float32", training, 3), one, "float32")
    folders = tmp_path / "one", tmp_path / "several"
    for folder in folders:
        folder.mkdir()
    rank_cases.save(Ranks.alone(), source, "grpo", folders[0], {"learning_rate": 0.0})
    processes.run(2, CASE + "save", source, "grpo", folders[1], {"learning_rate": 0.0})
    expected, found = (load_file(each / "saved" / "model.safetensors") for each in folders)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_rank_without_any_pass_adds_nothing(processes, folder):
    gradient, result, scores = rank_cases.small(Ranks.alone(), folder, "grpo", "float64")
    for found, made, scored in processes.run(4, CASE + "small", folder, "grpo", "float64"):
        for name, tensor in gradient.items():
            assert float((found[name] - tensor).norm()) <= 1e-12 * float(tensor.norm()), name
        assert made.metrics["learner/passes"] == 1.0
        assert made.metrics["policy/entropy"] == pytest.approx(result.metrics["policy/entropy"], rel=1e-12)
        np.testing.assert_allclose(made.terms.logprob, result.terms.logprob, rtol=1e-12)
        np.testing.assert_allclose(scored.logprob, scores.logprob, rtol=1e-9)


def test_no_rank_is_idle_where_the_batch_can_be_cut(processes, folder):
    """One bin would hold each of these batches; the slowest rank takes less than three quarters of it."""
    of_ranks = processes.run(2, CASE + "sharing", folder, "grpo", 8192)
    for mine, theirs in zip(*of_ranks, strict=True):
        assert mine[1] == theirs[1]
        assert len(mine[0]) == len(theirs[0])
        assert sorted(cost for cost in mine[0] + theirs[0] if cost) == pytest.approx(sorted(mine[1]))
    slots = [slot for mine, theirs in zip(*of_ranks, strict=True) for slot in zip(mine[0], theirs[0], strict=True)]
    slowest = sum(map(max, slots))
    assert slowest < 0.75 * sum(sum(mine[1]) for mine in of_ranks[0])


@pytest.fixture(scope="module")
def rounded(tmp_path_factory, chat_tokenizer):
    """A model that is stored in 16 bits, so that a state holds the weights."""
    path = tmp_path_factory.mktemp("rounded")
    qwen3().bfloat16().save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("training", [{}, {"lora": {"rank": 2}}], ids=["all weights", "an adapter"])
def test_a_run_goes_on_with_another_number_of_processes(processes, rounded, folder, tmp_path, training):
    source = folder if training else rounded
    whole, weights, _ = rank_cases.resume(Ranks.alone(), source, None, "grpo", "float64", training, 0, 6)
    losses, at, resumed = [], None, []
    for step, size in enumerate((2, 4, 1)):
        into = tmp_path / str(step)
        asked = (source, at, "grpo", "float64", training, 2 * step, 2 * step + 2, into)
        if size > 1:
            of_ranks = processes.run(size, CASE + "resume", *asked)
            assert all(each[0] == of_ranks[0][0] for each in of_ranks)
            assert is_state(into)
        else:
            of_ranks = [rank_cases.resume(Ranks.alone(), *asked)]
        losses += of_ranks[0][0]
        resumed, at = of_ranks[0], into
    # What an adapter's folder holds is float32, and its state has nothing more exact.
    tolerance = 1e-6 if training else 1e-9
    assert losses == pytest.approx(whole, rel=tolerance, abs=tolerance)
    for name, tensor in weights.items():
        torch.testing.assert_close(resumed[1][name], tensor, rtol=0, atol=tolerance)
    assert resumed[2] == 6
    # and from one process to several
    _, expected, _ = rank_cases.resume(Ranks.alone(), source, at, "grpo", "float64", training, 6, 7)
    for _, found, version in processes.run(2, CASE + "resume", source, at, "grpo", "float64", training, 6, 7):
        assert version == 7
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9)


def is_state(folder):
    return are_whole(folder / PARTS) and not (folder / STATE).exists()


@pytest.mark.parametrize("training", [{}, {"lora": {"rank": 2}}], ids=["all weights", "an adapter"])
def test_folders_and_lent_weights_are_those_of_one_process(processes, rounded, tmp_path, monkeypatch, training):
    (tmp_path / "one").mkdir()
    one = rank_cases.save(Ranks.alone(), rounded, "grpo", tmp_path / "one", {"learning_rate": 0.0, **training})
    (tmp_path / "several").mkdir()
    learned = {"learning_rate": 0.0, **training}
    of_ranks = processes.run(2, CASE + "save", rounded, "grpo", tmp_path / "several", learned)
    for told in of_ranks:
        assert not isinstance(told, BaseException), told
        assert told[2] == one[2]
        assert told[0] == one[0]
        assert told[1] == pytest.approx(one[1], abs=1e-6)
        assert told[3:4] == one[3:4]
        assert len(told) == len(one)
    for name in ("saved", "lent", *(["adapter"] if training else [])):
        own, other = tmp_path / "several" / name, tmp_path / "one" / name
        files = {path.name for path in other.iterdir()} - {STATE}
        assert {path.name for path in own.iterdir()} - {PARTS} == files
        for file in files:
            if file.endswith(".safetensors"):
                expected = load_file(other / file)
                found = load_file(own / file)
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[key], expected[key]) for key in found)
            elif file.endswith("config.json"):
                assert written(own / file) == written(other / file)


def written(path):
    """A config; peft writes a list of it as Python orders a set."""
    config = json.loads(path.read_text())
    return {**config, "target_modules": sorted(config.get("target_modules", []))}


def test_a_large_model_is_written_in_files_that_transformers_reads(processes, folder, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(folder)
    monkeypatch.setattr(model_writer, "FILE_BYTES", 10_000)
    write_spread(model, model.named_parameters(), folder, tmp_path / "saved", Ranks.alone(), torch.float32)
    assert len(list((tmp_path / "saved").glob("model-*-of-*.safetensors"))) > 2
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for (name, tensor), (other, expected) in zip(read.named_parameters(), model.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(tensor, expected)


def test_a_checkpoint_is_gone_back_to(processes, rounded, tmp_path):
    processes.run(2, CASE + "resume", rounded, None, "grpo", "float32", {}, 0, 2, tmp_path)
    for losses, went, resumed, version in processes.run(4, CASE + "go_back", rounded, tmp_path, "grpo", {}):
        assert version == 8
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for name, tensor in resumed.items():
            torch.testing.assert_close(went[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_part_that_is_not_whole_is_named_on_every_rank(processes, rounded, tmp_path, harm):
    processes.run(2, CASE + "resume", rounded, None, "grpo", "float32", {}, 0, 1, tmp_path)
    (tmp_path / "checkpoint.json").write_text("{}")
    assert is_whole(tmp_path)
    part = max((tmp_path / PARTS).glob("*.safetensors"))
    if harm == "missing":
        part.unlink()
    else:
        with part.open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"spoilt!!")
    assert not is_whole(tmp_path)
    for error in processes.run(2, CASE + "load", tmp_path, "grpo", {}):
        assert isinstance(error, RunError)
        assert part.name in str(error)
        assert harm in str(error)
        assert "go on from the checkpoint before it" in str(error)


def test_ranks_agree_on_gradients_that_are_zero_or_no_numbers(processes, folder):
    for same, updated, loss, after in processes.run(2, CASE + "spoilt", folder, "grpo"):
        assert same
        assert updated == 0.0
        assert not np.isfinite(loss)
        assert after == 1.0


def test_a_large_model_is_loaded_by_one_rank_at_a_time(processes, folder):
    times = sorted(tuple(each) for each in processes.run(3, CASE + "learn_in_turn", folder, "grpo"))
    assert all(before[1] <= after[0] for before, after in pairwise(times))


@pytest.mark.parametrize("training", [{"optimiser": {"bits": 8}}], ids=["8 bits"])
def test_what_ranks_cannot_do_is_refused(processes, folder, training):
    for error in processes.run(2, CASE + "train", folder, "grpo", "float32", training, 1):
        assert isinstance(error, ConfigError)
        assert "training.processes=1" in str(error)


def test_a_rank_that_does_not_answer_is_an_error_in_time(processes):
    first, second = processes.run(2, CASE + "hang", patience=3)
    assert isinstance(first, HostLostError)
    assert "could not take a step" in str(first)
    assert second is None


def test_a_rank_that_does_not_come_is_named_in_time():
    with pytest.raises(HostLostError, match=r"of 2 ranks of the learner these have not come within 1 s: 1"):
        Ranks.join(0, 2, Ranks.free_address(), "cpu", 1)


def test_a_rank_that_is_killed_is_named_by_the_others(warm, folder, tmp_path):
    processes = RankProcesses(warm, 3)
    try:
        processes.begin(3, CASE + "forever", folder, "grpo", tmp_path)
        wait_until(lambda: len(list(tmp_path.iterdir())) == 3, "no step was taken")
        os.kill(processes.processes[1].pid, signal.SIGKILL)
        for rank in (0, 2):
            error = processes.result(rank, 30)
            assert isinstance(error, HostLostError)
            assert "rank 1 of 3 of the learner, on " in str(error)
    finally:
        processes.close()


def wait_until(holds, otherwise, patience=90):
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def test_what_ranks_say_to_each_other_is_text_that_is_never_unpickled(processes):
    for told, refused in processes.run(3, CASE + "tell"):
        texts = ["", "ü" * 1000, "ü" * 2000]
        assert told == [
            {"rank": rank, "text": text, "number": 0.1, "pair": [1, None]} for rank, text in enumerate(texts)
        ]
        assert "not JSON serializable" in refused


def test_ranks_of_one_machine_listen_to_that_machine_alone(processes):
    found = processes.run(2, CASE + "listening")
    assert found[0], "the first rank listens for the others"
    assert {address for each in found for address in each} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_a_process_that_could_not_join_may_join_again(monkeypatch):
    from torch.distributed import device_mesh

    def no_mesh(*_):
        raise RuntimeError("there is no mesh")

    with monkeypatch.context() as patched:
        patched.setattr(device_mesh, "init_device_mesh", no_mesh)
        with pytest.raises(RuntimeError, match="there is no mesh"):
            Ranks.join(0, 1, Ranks.free_address(), "cpu", 30.0)
    ranks = Ranks.join(0, 1, Ranks.free_address(), "cpu", 30.0)
    try:
        assert ranks.gather("here") == ["here"]
    finally:
        ranks.leave()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere gloo chooses")
def test_ranks_talk_over_the_network_card_that_leads_to_the_first_one():
    assert ranks_module._card_towards("127.0.0.2") == "lo"
    assert ranks_module._card_towards("::1") is None
