"""The hook costs a run without the SDK nothing, and takes nobody else's objects."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from agents import Agent, Runner

from agentrl import Plugins
from agentrl.agents.binding import bind_agent
from agentrl_openai_agents.adapter import AdaptedAgent
from agentrl_openai_agents.hooks import agentrl_adapt_agent


def test_an_agent_becomes_one_whose_answer_a_reward_scores() -> None:
    adapted = Plugins().adapt_agent(Agent(name="Any"))
    assert isinstance(adapted, AdaptedAgent)
    assert bind_agent(adapted, {"max_turns": 3, "context": True}, name="any").returns_answer


@pytest.mark.parametrize("other", [Agent, Runner, "agent", None, SimpleNamespace(name="Any", tools=[])])
def test_anything_else_is_left_alone(other: object) -> None:
    assert agentrl_adapt_agent(other) is None


def test_a_package_of_the_same_name_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ModuleType("agents")
    theirs.Agent = str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "agents", theirs)
    assert agentrl_adapt_agent("an object of theirs") is None


def test_loading_the_plugin_and_trying_it_imports_nothing_of_the_sdk() -> None:
    code = (
        "import sys; from agentrl import Plugins; p = Plugins(); p.adapt_agent(object()); "
        "assert not p.broken, p.broken; "
        "print(*(name for name in ('agents', 'openai', 'torch') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
