"""The memory plan: what it counts, what it refuses, and what a process really took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.gpu.shapes import random_model
from transformers import AutoConfig

from agentrl.config import load_config
from agentrl.errors import ConfigError
from agentrl.machine import human
from agentrl.training import plan as planning
from agentrl.training.plan import plan_memory
from agentrl.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
NEAR, SMALL = 0.15, 100_000_000
CPU = "training.device=cpu"


def planned(folder, *settings):
    return plan_memory(load_config(None, CPU, *settings, environ={}), folder)


def own(parts):
    """The bytes that are counted exactly: all but those of a pass and the engine."""
    return {name: size for name, size in parts.items() if not name.startswith(("a pass", "engine"))}


def test_weights_gradients_and_moments_are_counted_by_the_settings(tiny_folder):
    whole = planned(tiny_folder)
    count = own(whole.parts)["weights"] // 4
    assert own(whole.parts) == {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimiser": 8 * count,
        "float32 masters": 0,
    }
    half = own(planned(tiny_folder, "training.precision=bfloat16").parts)
    assert half == own(whole.parts) | {"weights": 2 * count, "float32 masters": 4 * count}
    assert own(planned(tiny_folder, "training.optimiser.bits=8").parts)["optimiser"] == 2 * count
    adapter = own(planned(tiny_folder, "training.lora=4").parts)
    assert adapter["weights"] == 4 * count + adapter["gradients"]
    assert adapter["gradients"] < count


def test_processes_share_weights_and_optimiser_and_each_has_a_pass_of_its_own(tiny_folder):
    one, two, four = (planned(tiny_folder, f"training.processes={count}") for count in (1, 2, 4))
    assert two.parts["weights"] == four.parts["weights"] == one.parts["weights"]
    assert four.parts["optimiser"] == one.parts["optimiser"]
    (alone,) = (size for name, size in one.parts.items() if name.startswith("a pass"))
    assert two.parts["a pass of 8,192 tokens in each"] == 2 * alone
    assert four.parts["libraries"] == 2 * two.parts["libraries"]
    assert 0 < two.parts["layers put together in each"] < 2 * 3 * one.parts["weights"]
    assert "memory, of 4 processes: about " in str(four)
    half = planned(tiny_folder, "training.processes=2", "training.precision=bfloat16")
    assert half.parts["weights"] == two.parts["weights"]  # The shares are the float32 masters.
    adapter = planned(tiny_folder, "training.processes=2", "training.lora=4")
    assert adapter.parts["optimiser"] < two.parts["optimiser"] / 4


def test_each_gpu_holds_a_share(monkeypatch, tiny_folder):
    monkeypatch.setattr(planning, "find_device", lambda name, key: torch.device("cuda", 0))
    monkeypatch.setattr(planning, "learner_device", lambda config: torch.device("cuda", 0))
    monkeypatch.setattr(planning, "_footprint", lambda *_: type("Pass", (), {"bytes": lambda self, tokens: tokens})())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    one, four = (planned(tiny_folder, "training.precision=float32", *more) for more in ((), ("training.processes=4",)))
    assert four.parts["weights"] == pytest.approx(one.parts["weights"] / 4, abs=4)
    assert four.parts["optimiser"] == pytest.approx(one.parts["optimiser"] / 4, abs=4)
    assert four.parts["a pass of 8,192 tokens in each"] == one.parts["a pass of 8,192 tokens"]
    assert four.host == {"libraries": 4 * planning.PROCESS}
    assert "memory of cuda:0, and of each other process: about" in str(four)
    aside = planned(tiny_folder, "training.processes=4", "training.optimiser={offload: true}")
    assert aside.host["optimiser"] == one.parts["optimiser"]
    assert "weights" not in aside.parts


def test_what_other_machines_have_is_not_known_and_nothing_is_refused(monkeypatch, tiny_folder):
    free(monkeypatch, 1)
    told = []
    config = load_config(None, CPU, "training.processes=4", "scheduler=ray", environ={})
    assert planning.planned(config, tiny_folder, told.append, samples=False).training.tokens_per_batch == 8192
    (line,) = told
    assert "memory: each process of the learner takes about " in line
    assert "where scheduler.type=ray places it, whose memory is not known here: weights " in line


def test_a_pass_takes_less_with_checkpointing_and_in_bfloat16_and_in_proportion_to_its_tokens(tmp_path, tiny_folder):
    def passing(*settings, folder=tiny_folder):
        return next(size for name, size in planned(folder, *settings).parts.items() if name.startswith("a pass"))

    whole = passing()
    assert passing("training.tokens_per_batch=8192") == whole
    assert passing("training.gradient_checkpointing=true") <= whole
    assert passing("training.precision=bfloat16") < whole
    config = {"num_hidden_layers": 30, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
    AutoConfig.for_model("llama", **config, num_attention_heads=4).save_pretrained(tmp_path)
    assert passing("training.gradient_checkpointing=true", folder=tmp_path) < passing(folder=tmp_path) / 2
    fixed = planning.LIBRARIES["cpu"]
    doubled = passing("training.tokens_per_batch=16384") - fixed
    assert doubled == pytest.approx(2 * (whole - fixed), rel=0.1)


def free(monkeypatch, size):
    monkeypatch.setattr(planning, "free_memory", lambda: (size, True))


def parts(config):
    with Trainer(config) as trainer:
        return trainer._trainable(config, None)[1]


def test_passes_shrink_to_the_memory_that_is_free_and_the_run_keeps_their_size(monkeypatch, tiny_folder):
    config = load_config(None, CPU, "agent=math", environ={})
    assert parts(config).config.training.tokens_per_batch == 8192
    free(monkeypatch, planned(tiny_folder, "training.tokens_per_batch=2048").total)
    assert parts(config).config.training.tokens_per_batch == 2048


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch, tiny_folder):
    smaller = ("training.gradient_checkpointing=true", "training.optimiser.bits=8")
    size = planned(tiny_folder, *smaller, "training.tokens_per_batch=512").total
    free(monkeypatch, size)
    config = load_config(None, CPU, "agent=math", "training.tokens_per_batch=512", environ={})
    with pytest.raises(
        ConfigError, match=r"does not fit the memory: about .* that are free: weights .* too much"
    ) as no:
        parts(config)
    assert no.value.fix == f"set {' '.join(smaller)}"
    assert no.value.exit_code == 2
    free(monkeypatch, 1_000_000)
    with pytest.raises(ConfigError, match="does not fit") as no:
        parts(config)
    assert no.value.fix == "train a smaller model, or on a machine with more memory"


def test_a_teacher_that_is_loaded_is_counted_and_one_at_an_endpoint_is_not(tiny_folder):
    whole = planned(tiny_folder).parts["weights"]
    distils = ("agent=math", "algorithm=distill", f"algorithm.advantage.model={tiny_folder}")
    notes = []
    for settings in (distils, (*distils, "algorithm.advantage.url=http://127.0.0.1:9/v1")):
        with Trainer(load_config(None, CPU, *settings, environ={})) as trainer:
            trainer.reporter.note = notes.append
            trainer._trainable(trainer.config, None)
    assert f"teacher {human(whole)}" in notes[0]
    assert "teacher" not in notes[1]


def test_fine_tuning_is_planned_without_an_engine_before_its_conversations_are_read(monkeypatch, tmp_path, tiny_folder):
    messages = [{"role": "user", "content": "1 " * 1000}, {"role": "assistant", "content": "1"}]
    short = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": each}) + "\n" for each in (messages, short)))
    plan = plan_memory(load_config(None, CPU, environ={}), tiny_folder, samples=False, tokens=1024)
    assert "engine" not in plan.parts
    config = load_config(None, CPU, f"sft.data={data}", environ={})

    def taught():
        with Trainer(config) as trainer:
            return trainer._imitable(config, None)[1]

    assert taught().left_out["over_long"] == 0
    free(monkeypatch, plan.total)
    parts = taught()
    assert (parts.config.training.tokens_per_batch, parts.left_out["over_long"]) == (1024, 1)
    free(monkeypatch, 1_000_000)
    with pytest.raises(ConfigError, match="the run does not fit the memory"):
        taught()


def test_planning_takes_nothing_from_the_sequence_of_random_numbers(tiny_folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    planning._footprint.cache_clear()
    planned(tiny_folder)
    assert torch.equal(torch.rand(3), expected)


def test_tensors_that_come_and_go_among_small_ones_are_planned_with_what_is_lost_between_them(tiny_folder):
    """Measured: beside an adapter, layers took twice their tensors; `make acceptance` holds the plan to a process."""

    def passing(*settings):
        return next(size for name, size in planned(tiny_folder, *settings).parts.items() if name.startswith("a pass"))

    assert passing("training.lora=4") > 1.3 * passing()


@pytest.mark.long
@pytest.mark.parametrize("settings", [(), ("training.precision=bfloat16", "training.gradient_checkpointing=true")])
def test_a_process_grows_by_what_was_planned(tmp_path, settings):
    folder = random_model("qwen3-small", tmp_path)
    command = [sys.executable, "-m", "tests.gpu.memory", str(folder), CPU, "training.tokens_per_batch=512", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["passes"] == 2
    assert found["taken"] == pytest.approx(found["planned"], rel=NEAR, abs=SMALL)


def test_what_the_engine_shares_with_the_learner_is_counted_once(tiny_folder):
    def engine(*settings):
        return planned(tiny_folder, *settings).parts["engine"]

    weights = planned(tiny_folder).parts["weights"]
    copies = "inference.backend={name: torch, share_weights: false}"
    assert engine(copies) == engine() + weights
    assert engine("training.processes=2") == engine(copies)
    half = engine("training.precision=bfloat16", "inference.backend.dtype=bfloat16")
    assert half == engine() / 2, "the keys and values alone"
    assert engine("training.precision=bfloat16", "inference.backend.dtype=float32") == engine(copies)
    adapter = engine("training.lora={rank: 4, targets: [q_proj]}")
    assert engine() < adapter < engine("training.lora=4") < engine(copies)
