"""Runs that are streamed: the same tokens, one chain, in either of the SDK's models."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, function_tool

from agentrl import Config
from agentrl.testing import tool_call
from agentrl.testing.episodes import EpisodePlayer
from agentrl_openai_agents.model import APIS, PolicyEndpoint, policy_model


@function_tool(strict_mode=False)
def add(left: int, right: int) -> int:
    """The sum of two numbers."""
    return left + right


ADDER = Agent[Any](name="Adder", instructions="Add.", tools=[add])
LOOP = [*(tool_call("add", {"left": turn, "right": 38}) for turn in range(5)), "It is 85."]


class Asking:
    """An agent of agentrl that runs the SDK's by itself."""

    returns_answer = True

    def __init__(self, api: str, *, streamed: bool) -> None:
        self.api = api
        self.streamed = streamed
        self.told: list[str] = []

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any, model: str) -> Any:
        policy = policy_model(PolicyEndpoint(base_url, api_key, http_client, model, self.api))
        how = RunConfig(model=policy, tracing_disabled=True)
        if not self.streamed:
            return (await Runner.run(ADDER, data["question"], run_config=how)).final_output
        result = Runner.run_streamed(ADDER, data["question"], run_config=how)
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                self.told.append(event.data.type)
        return result.final_output


def played(agent: Asking) -> Any:
    config = Config.model_validate({"agent": "native", "reward": "numeric-match", "rollout": {"mode": "inline"}})
    with EpisodePlayer(config, agent) as player:
        (played,) = player.play(LOOP, {"question": "What is 47 + 38?", "answer": "85"})
    return played.episode


@pytest.mark.parametrize("api", APIS)
def test_a_loop_is_one_chain_streamed_and_not(api: str) -> None:
    asking = Asking(api, streamed=True)
    streamed, whole = played(asking), played(Asking(api, streamed=False))
    assert streamed.reward == whole.reward == 1.0
    assert [call.parent for call in streamed.calls] == [None, *(call.id for call in streamed.calls[:-1])]
    assert [call.fork_reason for call in streamed.calls] == [None] * len(LOOP)
    assert [span.ids for span in streamed.tree.spans] == [span.ids for span in whole.tree.spans]
    assert asking.told.count("response.completed") == len(LOOP)
    assert "response.function_call_arguments.delta" in asking.told
    assert "response.output_text.delta" in asking.told


def test_either_model_asks_for_the_same_tokens() -> None:
    one, other = (played(Asking(api, streamed=False)) for api in APIS)
    assert [span.ids for span in one.tree.spans] == [span.ids for span in other.tree.spans]
