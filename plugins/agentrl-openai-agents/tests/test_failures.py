"""What is not the policy's doing fails the episode, on the side that it belongs to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, FileSearchTool, ModelSettings, WebSearchTool, function_tool

from agentrl import BackendError, ConfigError
from agentrl.testing import tool_call
from agentrl_openai_agents.adapter import AdaptedAgent


@function_tool
def add(left: int, right: int) -> int:
    """The sum of two numbers."""
    if left < 0:
        raise ValueError("no negative numbers")
    return left + right


@function_tool(failure_error_function=None)
def fragile() -> int:
    """Breaks."""
    raise ValueError("it broke")


@function_tool(needs_approval=True)
def delicate() -> int:
    """Has to be approved of."""
    return 85


ADDER = Agent(name="Adder", tools=[add])
ASKING = Agent(name="Asking", tools=[ADDER.as_tool("ask_adder", "Adds.")])


def test_a_tool_that_raises_is_told_to_the_policy_as_the_sdk_does(play: Any, heard: Any) -> None:
    played = play(ADDER, tool_call("add", {"left": -1, "right": 2}), "It is 85.")
    assert "An error occurred" in heard(played.episode.calls[-1])[-1]["content"]
    assert played.episode.reward == 1.0


def test_a_tool_whose_author_wants_its_errors_raised_fails_the_agent_at_its_own_line(play: Any) -> None:
    failure = play(Agent(name="Fragile", tools=[fragile]), tool_call("fragile", {})).episode.failure
    assert failure.side == "agent"
    assert re.search(rf"fragile: it broke at {Path(__file__)}:\d+, in fragile", failure.reason)


def test_a_tool_that_waits_for_approval_fails_the_agent_by_its_name(play: Any) -> None:
    failure = play(Agent(name="Careful", tools=[delicate]), tool_call("delicate", {})).episode.failure
    assert (failure.side, failure.reason) == (
        "agent", "the run waits for approval of delicate (train with needs_approval=False)"
    )  # fmt: skip


def test_a_conversation_ends_where_it_has_to_wait(play: Any) -> None:
    data = {"question": ["First.", "Second."], "answer": "85"}
    played = play(Agent(name="Careful", tools=[delicate]), tool_call("delicate", {}), "It is 85.", data=data)
    assert (played.episode.failure.side, len(played.episode.calls)) == ("agent", 1)


@pytest.mark.parametrize(
    ("agent", "key"),
    [
        (Agent(name="Narrow", model_settings=ModelSettings(top_p=0.5)), "rollout.override: {top_p: null}"),
        (Agent(name="Greedy", model_settings=ModelSettings(temperature=0)), "rollout.override.temperature"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused_by_the_gateway(play: Any, agent: Any, key: str) -> None:
    failure = play(agent, "It is 85.").episode.failure
    assert failure.side == "gateway"
    assert key in failure.reason


@pytest.mark.parametrize(
    "agent",
    [
        Agent(name="Forced", tools=[add], model_settings=ModelSettings(tool_choice="required")),
        Agent(name="Form", output_type=list[int]),
    ],
)
def test_forms_that_a_grammar_keeps_are_granted(play: Any, agent: Any) -> None:
    played = play(agent, tool_call("add", {"a": 47, "b": 38}), '{"response": [85]}')
    assert played.episode.failure is None
    assert [call.unmet for call in played.episode.calls] == [()] * len(played.episode.calls)


def test_what_breaks_inside_an_agent_used_as_a_tool_fails_the_episode(play: Any) -> None:
    broken = [BackendError("the engine is gone")] * 3  # The client asks three times.
    played = play(ASKING, tool_call("ask_adder", {"input": "47 + 38"}), *broken, "It is 85.")
    assert (played.episode.failure.side, len(played.episode.calls)) == ("backend", 2)


def test_what_the_gateway_refuses_inside_an_agent_used_as_a_tool_fails_the_episode(play: Any) -> None:
    narrow = Agent(name="Narrow", model_settings=ModelSettings(top_p=0.5))
    asking = Agent(name="Asking", tools=[narrow.as_tool("ask", "Asks.")])
    failure = play(asking, tool_call("ask", {"input": "47 + 38"}), "It is 85.").episode.failure
    assert failure.side == "gateway"
    assert "top_p=0.5" in failure.reason


HOSTED = Agent(name="Searcher", tools=[FileSearchTool(vector_store_ids=["store"])])


@pytest.mark.parametrize(
    ("agent", "named"),
    [
        (Agent(name="Surfer", tools=[add, WebSearchTool()]), "'Surfer' has the tool 'web_search'"),
        (Agent(name="Triage", handoffs=[ADDER, HOSTED]), "'Searcher' has the tool 'file_search'"),
        (Agent(name="Kept", prompt={"id": "prompt"}), "the instructions of agent 'Kept' are a prompt kept at OpenAI"),
    ],
)
def test_what_only_openai_hosts_is_refused_before_a_run(player_of: Any, agent: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        player_of(agent)


def test_a_ring_of_handoffs_is_no_trap() -> None:
    one, other = Agent(name="One"), Agent(name="Other")
    one.handoffs.append(other)
    other.handoffs.append(one)
    assert AdaptedAgent(one)


def test_a_hosted_tool_that_shows_itself_in_the_run_only_fails_the_agent_or_is_counted(play: Any, api: str) -> None:
    asking = Agent(name="Asking", tools=[HOSTED.as_tool("search", "Searches.")])
    episode = play(asking, tool_call("search", {"input": "x"}), "It is 85.", "It is 85.").episode
    if api == "chat":
        assert episode.failure.side == "agent"
        assert "FileSearchTool" in episode.failure.reason
    else:
        assert [call.unmet for call in episode.calls if "file_search" in call.unmet] == [("file_search",)]
