"""The memory plan where learner and engine take turns on one GPU, of which there is none here: only numbers are."""

from __future__ import annotations

import pytest
import torch

from agentrl import load_config
from agentrl.learner.footprint import measure_pass
from agentrl.training import plan as plans
from agentrl.training.phases import ASLEEP, SPARE, WORKING
from agentrl.training.plan import plan_memory

GB = 1_000_000_000


@pytest.fixture
def gpu(monkeypatch, tiny_folder):
    """A GPU that only the plan knows of, and its free bytes."""
    free = [80 * GB]
    cpu = torch.device("cpu")
    monkeypatch.setattr(plans, "learner_device", lambda config: torch.device("cuda"))
    monkeypatch.setattr(
        plans, "measure_pass", lambda config, training, device, dtype: measure_pass(config, training, cpu, dtype)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 80 * GB))
    monkeypatch.setattr(plans, "free_memory", lambda: (64 * GB, 64 * GB))
    plans._footprint.cache_clear()
    yield free
    plans._footprint.cache_clear()


def planned(tiny_folder, colocate, *settings):
    backend = f"inference.backend={{name: vllm, colocate: {str(colocate).lower()}}}"
    return plan_memory(load_config(None, backend, *settings, environ={}), tiny_folder)


def test_the_states_of_the_optimiser_are_on_the_host_while_the_engine_samples(gpu, tiny_folder):
    alone, shared = planned(tiny_folder, False), planned(tiny_folder, True)
    assert alone.sampling == {}
    assert alone.engine_share is None
    assert not alone.host
    assert shared.parts == {**alone.parts, "the engine, asleep": ASLEEP}
    states = {f"{name}, aside": alone.parts[name] for name in ("optimiser", "float32 masters")}
    assert all(states.values())
    assert shared.host == states
    assert not {"optimiser", "float32 masters", "gradients"} & shared.sampling.keys()
    assert shared.sampling["weights"] == alone.parts["weights"]
    assert shared.sampling["engine"] > WORKING
    text = str(shared)
    assert "during a step" in text
    assert "while the engine samples" in text


def test_the_run_takes_as_much_as_the_larger_phase_and_the_engine_gets_what_the_other_leaves(gpu, tiny_folder):
    few, many = (planned(tiny_folder, True, f"rollout.concurrency={count}") for count in (1, 100_000))
    assert few.total == max(sum(few.parts.values()), sum(few.sampling.values()))
    assert many.total == sum(many.sampling.values()) > sum(many.parts.values())
    others = sum(size for name, size in few.sampling.items() if name != "engine")
    assert few.engine_share == int(80 * GB * (1 - SPARE)) - others
    assert many.engine_share == few.engine_share
    gpu[0] = 4 * GB
    assert planned(tiny_folder, True, "rollout.concurrency=100000").spare < 0


def test_offloaded_states_are_on_the_host_in_any_case_and_counted_once(gpu, tiny_folder):
    shared = planned(tiny_folder, True, "training.optimiser={offload: true}")
    assert set(shared.host) == {"gradients", "optimiser", "float32 masters"}
    assert "optimiser" not in shared.parts
