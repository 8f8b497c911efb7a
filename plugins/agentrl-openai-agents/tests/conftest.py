"""Episodes of native agents on the real gateway, with the policy's part from a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent

from agentrl.config.models import Config
from agentrl.testing.scripted import Completion
from agentrl.testing.stage import Played, Stage

Play = Callable[..., Played]

TASK = {"question": "What is 47 + 38?", "answer": "85"}


@pytest.fixture
def stage() -> Callable[..., Stage]:
    """Makes a stage for an agent: native, or a registered name; ``kwargs`` are ``agent.kwargs``."""

    def stage(agent: Agent[Any] | str, *, override: dict[str, Any] | None = None, **kwargs: Any) -> Stage:
        named = isinstance(agent, str)
        config = Config.model_validate(
            {
                "agent": {"name": agent if named else "native", "kwargs": kwargs},
                "reward": None if named else "numeric-match",
                "rollout": {"mode": "inline", "episode_timeout": 20.0, "override": override or {}},
            }
        )
        return Stage(config, None if named else agent)

    return stage


@pytest.fixture
def play(stage: Callable[..., Stage]) -> Play:
    """Plays one episode in which the policy writes ``completions``."""

    def play(
        agent: Agent[Any] | str, *completions: Completion, data: dict[str, Any] | None = None, **how: Any
    ) -> Played:
        with stage(agent, **how) as running:
            return running.play(completions, data or TASK)[0]

    return play


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key that a client could use elsewhere."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
