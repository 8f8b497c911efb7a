"""The examples, and native agents by reference, train on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentrl import Trainer, load_config, open_run

NATIVE = """
from camel.agents import ChatAgent
from camel.models import ModelFactory

from agentrl_agents.math import SYSTEM
from agentrl_camel.policy import COUNTER


def factory(model) -> ChatAgent:
    return ChatAgent(SYSTEM, model=model)


agent = ChatAgent(
    SYSTEM,
    model=ModelFactory.create(
        "openai-compatible-model", "gpt-4o", url="http://elsewhere.invalid/v1", api_key="sk-", token_counter=COUNTER
    ),
)
"""


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains an agent for two steps."""
    monkeypatch.chdir(tmp_path)
    Path("native.py").write_text(NATIVE)

    def train(agent: str, *settings: str) -> Any:
        config = load_config(
            None,
            f"run.dir={tmp_path}",
            "run.name=run",
            "training.steps=2",
            "training.checkpoint_every=0",
            "evaluation.every=0",
            "evaluation.tasks=4",
            "rollout.group_size=4",
            "rollout.tasks_per_step=2",
            "rollout.max_workers=1",
            *settings,
        )
        with Trainer(config) as trainer:
            return trainer.train(agent=agent)

    return train


@pytest.mark.parametrize("agent", ["camel-math", "camel-society"])
def test_an_example_trains(agent: str, train: Any) -> None:
    summary = train(agent)
    assert (summary.outcome, summary.steps) == ("completed", 2)
    assert Path(summary.checkpoint).is_dir()


@pytest.mark.parametrize(("name", "mode"), [("factory", "inline"), ("agent", "inline"), ("agent", "subproc")])
def test_a_native_agent_trains_by_reference(name: str, mode: str, train: Any, tmp_path: Path) -> None:
    summary = train(f"native.py:{name}", "reward=numeric-match", f"rollout.mode={mode}")
    assert (summary.outcome, summary.steps) == ("completed", 2)
    assert {episode.outcome for episode in open_run(tmp_path / "run").load_episodes()} == {"rewarded"}
