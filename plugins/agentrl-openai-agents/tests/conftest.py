"""Episodes of native agents on the real gateway, with the policy's part from a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent

from agentrl import Config
from agentrl.gateway.contract import Call
from agentrl.testing.episodes import EpisodePlayer, Played
from agentrl.testing.scripted import ScriptedCompletion
from agentrl_openai_agents.model import APIS

Play = Callable[..., Played]

TASK = {"question": "What is 47 + 38?", "answer": "85"}


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    """The protocol in which native agents ask the policy: they are to do the same in each."""
    return str(request.param)


@pytest.fixture
def player_of(api: str) -> Callable[..., EpisodePlayer]:
    """Makes a player of an agent: native, or a registered name; ``kwargs`` are ``agent.kwargs``."""

    def player_of(agent: Agent[Any] | str, *, override: dict[str, Any] | None = None, **kwargs: Any) -> EpisodePlayer:
        named = isinstance(agent, str)
        kwargs = kwargs if named else {"api": api} | kwargs
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


@pytest.fixture
def heard() -> Callable[[Call], list[dict[str, Any]]]:
    """Gives the messages of a call in the shape of chat completions, whichever API the agent asked in."""

    def heard(call: Call) -> list[dict[str, Any]]:
        request = call.request
        if "messages" in request:
            return list(request["messages"])
        asked = request["input"]
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        system = [{"role": "system", "content": request["instructions"]}] if request.get("instructions") else []
        return [*system, *_messages(items)]

    return heard


def _messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for item in items:
        match item.get("type", "message"):
            case "message":
                content = item["content"]
                text = content if isinstance(content, str) else "".join(part["text"] for part in content)
                messages.append({"role": item["role"], "content": text})
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                messages[-1].setdefault("tool_calls", []).append(item)
            case "function_call_output":
                messages.append({"role": "tool", "content": item["output"]})
    return messages
