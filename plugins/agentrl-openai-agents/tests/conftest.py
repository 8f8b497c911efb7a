"""Episodes of native agents on the real gateway, with the policy's part from a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent

from agentrl import Config
from agentrl.testing.episodes import EpisodePlayer, Played
from agentrl.testing.scripted import ScriptedCompletion

Play = Callable[..., Played]

TASK = {"question": "What is 47 + 38?", "answer": "85"}


@pytest.fixture
def player_of() -> Callable[..., EpisodePlayer]:
    """Makes a player of an agent: native, or a registered name; ``kwargs`` are ``agent.kwargs``."""

    def player_of(agent: Agent[Any] | str, *, override: dict[str, Any] | None = None, **kwargs: Any) -> EpisodePlayer:
        named = isinstance(agent, str)
        config = Config.model_validate(
            {
                "agent": {"name": agent if named else "native", "kwargs": kwargs},
                "reward": None if named else "numeric-match",
                "rollout": {"mode": "inline", "episode_timeout": 20.0, "override": override or {}},
            }
        )
        return EpisodePlayer(config, None if named else agent)

    return player_of


@pytest.fixture
def play(player_of: Callable[..., EpisodePlayer]) -> Play:
    """Plays one episode in which the policy writes ``completions``."""

    def play(
        agent: Agent[Any] | str, *completions: ScriptedCompletion, data: dict[str, Any] | None = None, **how: Any
    ) -> Played:
        with player_of(agent, **how) as running:
            return running.play(completions, data or TASK)[0]

    return play


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key that a client could use elsewhere."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
