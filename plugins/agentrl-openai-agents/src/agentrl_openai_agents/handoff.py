"""The example of several agents: one that hands over to specialists, and the reward of all."""

from __future__ import annotations

from typing import Any

from agents import Agent

from agentrl_agents.tasks import question, score
from agentrl_openai_agents.conversation import converse
from agentrl_openai_agents.model import Endpoint

__all__ = ["TRIAGE", "HandoffAgent"]

ADDER = Agent[Any](
    name="Adder",
    handoff_description="Adds numbers.",
    instructions="Solve the problem. The last number you write is your answer.",
)
MULTIPLIER = Agent[Any](
    name="Multiplier",
    handoff_description="Multiplies numbers.",
    instructions="Solve the problem. The last number you write is your answer.",
)
TRIAGE = Agent[Any](name="Triage", instructions="Hand the problem over.", handoffs=[ADDER, MULTIPLIER])


class HandoffAgent:
    """Asks ``TRIAGE``. The reward is 1 for the right number, whoever gave it, and 0 for any other."""

    def __init__(self, max_turns: int = 4) -> None:
        self.max_turns = max_turns

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any, model: str) -> float:
        endpoint = Endpoint(base_url, api_key, http_client, model)
        answer = await converse(TRIAGE, [question(data)], endpoint, max_turns=self.max_turns)
        return score(answer, data)
