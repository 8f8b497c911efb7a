"""The agent `camel-math`: a `ChatAgent` that answers a question with the help of a calculator."""

from __future__ import annotations

import warnings
from typing import Any

from camel.agents import ChatAgent
from camel.toolkits import FunctionTool

from agentrl_agents.calculator import SYSTEM
from agentrl_agents.calculator import TOOL as SCHEMA
from agentrl_agents.expressions import evaluate
from agentrl_agents.tasks import question, score
from agentrl_camel.conversation import converse
from agentrl_camel.copying import checked_once
from agentrl_camel.policy import Policy

__all__ = ["CamelMathAgent", "calculator"]


async def calculator(expression: str) -> str:
    """Evaluates numbers, + - * and brackets."""  # Async, because CAMEL starts a thread for what is not.
    return str(evaluate(expression))


with warnings.catch_warnings(action="ignore"):  # CAMEL misses a description of `expression`; the model knows none.
    _CALCULATOR = checked_once(FunctionTool(calculator, openai_tool_schema=dict(SCHEMA)))


class CamelMathAgent:
    """Lets the model call the calculator before it answers; the model is called at most ``max_turns`` times.

    The reward is 1 for the right number, and 0 for any other or none. CAMEL answers a call that makes no sense, and the
    conversation goes on; a call whose arguments are not JSON ends it.
    """

    def __init__(self, max_turns: int = 3) -> None:
        self.max_turns = max_turns

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any, model: str) -> float:
        policy = Policy(base_url, api_key, http_client, model)
        agent = ChatAgent(SYSTEM, model=policy.backend(), tools=[_CALCULATOR], max_iteration=self.max_turns)
        answer = await converse(policy.take_over(agent), [question(data)], policy)
        return score(answer, data)
