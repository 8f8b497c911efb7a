"""Training through a real server comes to what training through the torch engine comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import KL_BELOW, RATIO_WITHIN, VLLM, configured, run

from agentrl import Trainer, open_run
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


def test_tokens_of_several_versions_of_equal_weights_have_a_ratio_of_one(real_server: Server, tmp_path: Path) -> None:
    """At learning rate 0 a step makes a version and changes nothing: what goes on across it is as likely as before."""
    settings = [
        *("training.learning_rate=0", "training.steps=4", "rollout.max_staleness=1", "rollout.tasks_per_step=2"),
        *("tasks.eval=null", "training.checkpoint_every=0"),
    ]
    ended = run(tmp_path / "run", "calculator", {"name": VLLM, "urls": [real_server.url]}, *settings)
    assert ended.error is None, ended.said
    assert ended.once_each
    rows = [line.metrics for line in open_run(ended.folder.path).metrics() if "policy/ratio_mean" in line.metrics]
    assert len(rows) == 4
    for row in rows:
        assert abs(row["policy/ratio_mean"] - 1) <= RATIO_WITHIN
        assert row["policy/mismatch_kl"] < KL_BELOW
        assert row["proof/tensors"] > 0
    sampled = {
        version
        for episode in ended.episodes
        for span in episode.tree.spans
        if span.sampled is not None
        for version in span.sampled.versions
    }
    assert sampled > {0, 1}
