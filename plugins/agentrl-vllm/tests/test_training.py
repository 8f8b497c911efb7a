"""Training through a real server comes to what training through the torch engine comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import VLLM, configured, run

from agentrl import Trainer
from agentrl_vllm.server import Server

pytestmark = pytest.mark.real

STEPS = {"math": 30, "calculator": 40}
LEARNED = 0.9
"""Held-out reward, sampled; the greedy one comes to more."""
APART = 0.08
"""The sampled rewards of two engines on 128 tasks differ by chance: each has its own random numbers."""


@pytest.mark.parametrize("agent", ["math", "calculator"])
def test_an_agent_learns_what_it_learns_with_the_torch_engine(agent: str, real_server: Server, tmp_path: Path) -> None:
    settings = [f"training.steps={STEPS[agent]}", "evaluation.every=0", "training.checkpoint_every=0"]
    attached = {"name": VLLM, "urls": [real_server.url]}
    vllm = run(tmp_path / "vllm", agent, attached, *settings)
    torch = run(tmp_path / "torch", agent, {"name": "torch"}, *settings)
    assert vllm.error is torch.error is None
    assert vllm.once_each
    assert vllm.exact

    ours, theirs = vllm.summary, torch.summary
    assert ours.reward_before_greedy == theirs.reward_before_greedy
    assert ours.reward_before <= 0.5
    assert min(ours.reward_after, ours.reward_after_greedy, theirs.reward_after) >= LEARNED
    assert abs(ours.reward_after - theirs.reward_after) <= APART

    measured = {}
    for engine, backend in {"vllm": attached, "torch": {"name": "torch"}}.items():
        with Trainer(configured(backend, f"agent={agent}")) as trainer:
            measured[engine] = trainer.evaluate(ours.checkpoint).greedy
    assert measured == {"vllm": ours.reward_after_greedy, "torch": ours.reward_after_greedy}
