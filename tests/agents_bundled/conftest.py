"""The bundled agents before a gateway whose backend says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import ScriptedBackend

from agentrl.agents.binding import bind_agent
from agentrl.gateway import Call, EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.plugins import Plugins
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

TASK = {"question": "What is 47 + 38?", "answer": "85"}


@dataclass(frozen=True)
class Played:
    """An episode of a bundled agent."""

    result: Any
    calls: list[Call]

    @property
    def heard(self) -> list[str]:
        """What the policy was told after its first turn."""
        return [
            message["content"] for message in self.calls[-1].request["messages"][2:] if message["role"] != "assistant"
        ]


Play = Callable[..., Played]


@pytest.fixture(scope="session")
def tiny_renderer(tiny_folder: Path) -> Renderer:
    return load_renderer(tiny_folder)


@pytest.fixture
def play(tiny_renderer: Renderer) -> Play:
    """Runs the agent of a name on a task; the policy writes the given texts, one a turn."""

    def play(name: str, *texts: str, data: dict[str, Any] = TASK, **kwargs: Any) -> Played:
        backend = ScriptedBackend(tiny_renderer)
        backend.says(*texts)
        gateway = Gateway(EngineCompleter(backend, Capabilities(context_length=1024, max_concurrency=8), tiny_renderer))
        session = gateway.open_session(SessionSettings(training=True))
        connection = {
            "base_url": session.base_url,
            "api_key": session.api_key,
            "http_client": gateway.http_client(),
            "model": "policy",
        }
        agent = bind_agent(Plugins().get("agents", name), kwargs, name=name)
        result = asyncio.run(agent.call(data, connection))
        assert not backend.script, "the agent made fewer calls than the test expects"
        return Played(result, list(session.calls))

    return play
