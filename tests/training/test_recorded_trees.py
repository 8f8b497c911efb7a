"""Trees that the gateway recorded of every bundled agent, through the full objective, against plain forwards."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from tests.learner.models import takes_forest
from tests.learner.reference import forest_gradient, reference_gradient, relative_difference
from transformers import AutoModelForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from agentrl import Trainer, load_config, open_run
from agentrl.algorithms.building import build_algorithm
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Group

SETTINGS = ("training.steps=1", "tasks.eval=null", "rollout.tasks_per_step=4", "run.name=run")


def recorded(agent, folder, *settings):
    """The groups of one step, as the episode store kept them."""
    config = load_config(None, f"run.dir={folder}", *SETTINGS, *settings, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train(agent)
    episodes = defaultdict(list)
    for episode in open_run(folder / "run").load_episodes():
        episodes[episode.key.task].append(_told_apart(episode))
    return [Group(task, tuple(group)) for task, group in episodes.items()], config


def _told_apart(episode):
    """The episode with a reward that no other of its group has, so that every one has an advantage."""
    calls = {call: reward + episode.key.sample for call, reward in episode.call_rewards.items()}
    return replace(episode, reward=float(episode.key.sample), call_rewards=calls)


@pytest.fixture
def exact_norm(monkeypatch):
    """The model's norm rounds to float32 whatever it is given, which is more than what is held apart here."""

    def forward(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(Qwen3RMSNorm, "forward", forward)


@pytest.mark.parametrize("agent", ["math", "multi_turn_math", "calculator"])
def test_the_gradient_of_recorded_episodes_is_that_of_plain_rows(agent, tmp_path, tiny_folder, request):
    groups, config = recorded(agent, tmp_path, "rollout.temperature=0.9")
    request.getfixturevalue("exact_norm")  # Only now: the episodes were sampled by the model as it is.
    algorithm = build_algorithm(Plugins(), config.algorithm)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
    expected_loss, expected = reference_gradient(model, groups, algorithm)
    loss, gradient = forest_gradient(takes_forest(model), groups, algorithm)
    assert sum(len(group.episodes) for group in groups) == 32
    assert loss == pytest.approx(expected_loss, rel=1e-6, abs=1e-12)
    assert relative_difference(gradient, expected) < 1e-9


def test_the_next_turn_extends_the_very_tokens_that_were_sampled(tmp_path, tiny_folder):
    groups, _ = recorded("multi_turn_math", tmp_path)
    later = [call for group in groups for episode in group.episodes for call in episode.calls[1:]]
    assert later
    assert all(call.parent is not None and call.fork_reason is None for call in later)
