"""Agents that hand over to each other, that use each other as tools, and that run beside each other."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Agent, Runner, function_tool
from agents.tool_context import ToolContext

from agentrl.testing import tool_call


@function_tool
async def add(left: int, right: int) -> int:
    """The sum of two numbers."""
    return left + right


ADDER = Agent(name="Adder", instructions="Add.", tools=[add], model="gpt-5.4")
TRIAGE = Agent(name="Triage", instructions="Hand over.", handoffs=[ADDER, Agent(name="Poet", model="o3")])
ASKING = Agent(name="Asking", instructions="Ask.", tools=[ADDER.as_tool("ask_adder", "Adds.")], model="gpt-4.1")

CONSULT = tool_call("consult", {})
HAND_OVER = tool_call("transfer_to_adder", {})
ADD = tool_call("add", {"left": 47, "right": 38})
ASK = tool_call("ask_adder", {"input": "Add 47 and 38."})


@pytest.fixture
def systems(heard: Any) -> Any:
    """Gives the instructions that each call of an episode was made under."""

    def systems(played: Any) -> list[str]:
        return [heard(call)[0]["content"] for call in played.episode.calls]

    return systems


def tools(call: Any) -> list[str]:
    """The names of the tools that a call offers."""
    return [tool.get("function", tool)["name"] for tool in call.request["tools"]]


def sampled(played: Any) -> list[int]:
    """How many tokens the policy wrote in each span of the tree."""
    return [len(span.ids) for span in played.episode.tree.spans if span.sampled is not None]


def test_a_handoff_swaps_instructions_and_tools_and_forks_the_tree_there(play: Any, heard: Any, systems: Any) -> None:
    played = play(TRIAGE, HAND_OVER, ADD, "It is 85.")
    first, second, third = played.episode.calls
    assert systems(played) == ["Hand over.", "Add.", "Add."]
    assert tools(first) == ["transfer_to_adder", "transfer_to_poet"]
    assert tools(second) == ["add"]
    assert [call.fork_reason for call in played.episode.calls] == [None, "history edited", None]
    assert [call.parent for call in played.episode.calls] == [None, None, second.id]
    assert heard(third)[1:3] == heard(second)[1:3]
    assert played.episode.reward == 1.0


def test_what_was_written_before_a_handoff_is_history_after_it(play: Any, heard: Any) -> None:
    played = play(TRIAGE, f"A sum.\n{HAND_OVER}", "It is 85.")
    user, handing_over, answered = heard(played.episode.calls[1])[1:]
    assert user == {"role": "user", "content": "What is 47 + 38?"}
    assert (handing_over["content"], len(handing_over["tool_calls"])) == ("A sum.", 1)
    assert answered["content"] == '{"assistant": "Adder"}'


def test_every_token_that_any_agent_samples_is_recorded_once(play: Any) -> None:
    for agent, script in ((TRIAGE, (HAND_OVER, ADD, "It is 85.")), (ASKING, (ASK, ADD, "85", "It is 85."))):
        played = play(agent, *script)
        assert sampled(played) == [call.completion_tokens for call in played.episode.calls]
        assert len(sampled(played)) == len(script)


def test_an_agent_used_as_a_tool_is_captured_in_a_conversation_of_its_own(play: Any, heard: Any, systems: Any) -> None:
    played = play(ASKING, ASK, ADD, "85", "It is 85.")
    assert systems(played) == ["Ask.", "Add.", "Add.", "Ask."]
    outer, inner, last_inner, last = played.episode.calls
    assert heard(inner)[1] == {"role": "user", "content": "Add 47 and 38."}
    assert (outer.parent, inner.parent, last_inner.parent, last.parent) == (None, None, inner.id, outer.id)
    assert [call.fork_reason for call in played.episode.calls] == [None] * 4
    assert heard(last)[-1]["content"] == "85"


@function_tool
async def consult(context: ToolContext[Any]) -> str:
    """What the adder says."""
    return str((await Runner.run(ADDER, "Add 47 and 38.", run_config=context.run_config)).final_output)


def test_an_agent_that_a_tool_runs_with_the_runs_own_config_is_captured(play: Any, systems: Any) -> None:
    played = play(Agent(name="Consulting", instructions="Consult.", tools=[consult]), CONSULT, ADD, "85", "It is 85.")
    assert systems(played) == ["Consult.", "Add.", "Add.", "Consult."]
    assert played.episode.reward == 1.0


def test_an_unknown_tool_is_told_to_agents_used_as_tools_too(play: Any, heard: Any) -> None:
    played = play(ASKING, ASK, tool_call("subtract", {}), "85", "It is 85.")
    assert heard(played.episode.calls[2])[-1]["content"] == "Tool 'subtract' not found."
    assert played.episode.reward == 1.0


def test_episodes_at_once_share_an_agent_and_nothing_else(player_of: Any) -> None:
    before = repr(TRIAGE)
    tasks = [{"question": f"What is {number} + 38?", "answer": str(number + 38)} for number in range(64)]

    def policy(prompt: str) -> str:
        number = int(prompt.split("What is ")[1].split(" +")[0])
        if "transfer_to_adder" not in prompt.split("What is ")[1]:
            return HAND_OVER
        if '"left"' not in prompt.split("What is ")[1]:
            return tool_call("add", {"left": number, "right": 38})
        return f"It is {prompt.split('<tool_response>')[-1].split('</tool_response>')[0].strip()}."

    with player_of(TRIAGE) as running:
        episodes = running.play(policy, *tasks, gather=True)
    assert running.backend.alone == 0
    assert [played.episode.reward for played in episodes] == [1.0] * 64
    assert [len(played.episode.calls) for played in episodes] == [3] * 64
    assert repr(TRIAGE) == before
