"""Fixtures for the tests of plugin authors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agentrl.agents.binding import reference_of
from agentrl.config.models import Config
from agentrl.rollout.contract import Episode
from agentrl.testing.episodes import EpisodePlayer
from agentrl.testing.parts import model_folder
from agentrl.testing.scripted import ScriptedBackend, ScriptedCompletion

__all__ = ["play", "scripted", "tiny_model"]


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of the bundled model ``tiny``."""
    return model_folder()


@pytest.fixture
def scripted() -> Callable[..., ScriptedBackend]:
    """``scripted(*completions)`` makes a ``ScriptedBackend`` that plays them, with the tokenizer of ``tiny``."""

    def scripted(*completions: ScriptedCompletion) -> ScriptedBackend:
        return ScriptedBackend(completions)

    return scripted


@pytest.fixture
def play() -> Callable[..., Episode]:
    """``play(agent, task, *completions)`` runs one episode in which the policy writes ``completions``.

    ``agent`` is what ``AgentConformance.agent`` is; ``kwargs``, ``reward`` and ``mode`` are as in a config.
    """

    def play(
        agent: Any,
        task: dict[str, Any],
        *completions: ScriptedCompletion,
        kwargs: Mapping[str, Any] | None = None,
        reward: str | Mapping[str, Any] | None = None,
        mode: str = "auto",
    ) -> Episode:
        name = agent if isinstance(agent, str) else reference_of(agent)
        rollout = {"mode": mode, "episode_timeout": 30.0}
        section = {"name": name, "kwargs": dict(kwargs or {})}
        config = Config.model_validate({"agent": section, "reward": reward, "rollout": rollout})
        with EpisodePlayer(config, None if isinstance(agent, str) else agent) as player:
            (played,) = player.play(completions, task)
        return played.episode

    return play
