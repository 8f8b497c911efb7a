"""The example of an agent with a tool: an agent of the SDK, and a class that asks it and scores its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents import Agent, function_tool

from agentrl_agents import calculator as bundled
from agentrl_agents.expressions import evaluate
from agentrl_agents.tasks import question, score
from agentrl_openai_agents.conversation import converse
from agentrl_openai_agents.model import PolicyEndpoint

__all__ = ["CALCULATOR", "CalculatorAgent"]


@function_tool(strict_mode=False)
def calculator(expression: str) -> str:
    """Evaluates numbers, + - * and brackets."""
    return str(evaluate(expression))


# The model tiny has learnt one spelling of the tool's schema; any other model reads that which the SDK writes.
tool = replace(calculator, params_json_schema=bundled.TOOL["function"]["parameters"])

CALCULATOR = Agent[Any](name="Calculator", instructions=bundled.SYSTEM, tools=[tool])
"""An agent as an application has it, without anything of agentrl."""


class CalculatorAgent:
    """Asks ``CALCULATOR``. The reward is 1 for the right number, 0 for any other."""

    def __init__(self, max_turns: int = 3) -> None:
        self.max_turns = max_turns

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any, model: str) -> float:
        endpoint = PolicyEndpoint(base_url, api_key, http_client, model)
        answer = await converse(CALCULATOR, [question(data)], endpoint, max_turns=self.max_turns)
        return score(answer, data)
