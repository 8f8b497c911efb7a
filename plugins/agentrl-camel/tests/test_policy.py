"""The policy in CAMEL's other constructs, and what CAMEL does beside calling it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from camel.agents import ChatAgent
from natives import Play, call, elsewhere, solver
from pydantic import BaseModel

from agentrl_camel.policy import COUNTER, Policy


class Answer(BaseModel):
    number: int


def test_a_structured_answer_is_plain_json(play: Play) -> None:
    agent = solver(model=elsewhere(response_format=Answer), tools=[])
    assert play(agent, '{"number": 85}', override={"response_format": None}).answer == {"number": 85}


def test_an_agent_inside_a_tool_may_call_the_policy_from_its_thread(play: Play) -> None:
    class Delegates:
        async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> Any:
            policy = Policy(base_url, api_key, http_client)

            def calculator(expression: str) -> str:
                """Asks another agent.

                Args:
                    expression: What to ask.
                """
                other = policy.take_over(ChatAgent("Calculate.", model=policy.backend()))
                return str(other.step(expression).msg.content)

            agent = policy.take_over(ChatAgent("Solve.", model=policy.backend(), tools=[calculator]))
            return (await agent.astep(data["question"])).msg.content

    played = play(Delegates, call(), "85", "It is 85.")
    assert played.answer == "It is 85."
    assert [made.request["messages"][0]["content"] for made in played.calls] == ["Solve.", "Calculate.", "Solve."]
    assert ("tool", "85") in played.said()


def test_long_results_of_tools_are_cut_without_a_tokenizer(play: Play) -> None:
    def calculator(expression: str) -> str:
        """Answers at length.

        Args:
            expression: Anything.
        """
        return "85 " * 2000

    played = play(solver(tools=[calculator], token_limit=500), call(), "It is 85.")
    assert "[TRUNCATED]" in played.said()[-1][1]


@pytest.mark.parametrize("text", ["", "a", "It is 85.", "größer 👍\n", "\0\0\0\0\0", "x" * 1000])
def test_what_is_counted_can_be_read_again(text: str) -> None:
    assert COUNTER.decode(COUNTER.encode(text)) == text


def test_camel_prints_nothing_of_its_own() -> None:
    code = (
        "import logging, agentrl_camel.math, agentrl_camel.society\n"
        "from agentrl_camel.policy import Policy\n"
        "from camel.agents import ChatAgent\n"
        "policy = Policy('http://127.0.0.1:9/v1', 'key', None)\n"
        "agent = policy.take_over(ChatAgent('Hello', model=policy.backend()))\n"
        "logging.getLogger('camel.agents').error('loud')\n"
        "assert not logging.root.handlers, logging.root.handlers"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
