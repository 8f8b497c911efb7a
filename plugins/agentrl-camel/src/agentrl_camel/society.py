"""The agent `camel-society`: a solver and a critic, who hear each other before the solver answers."""

from __future__ import annotations

from typing import Any

from camel.agents import ChatAgent
from camel.messages import BaseMessage
from camel.societies import RolePlaying

from agentrl_agents.multi_turn_math import SYSTEM
from agentrl_agents.tasks import question, score
from agentrl_camel.conversation import converse
from agentrl_camel.policy import Policy

__all__ = ["CamelSocietyAgent"]


class CamelSocietyAgent:
    """Two agents each solve the problem, then discuss it for ``rounds`` rounds of CAMEL's ``RolePlaying``.

    In a round the critic hears the solver's answer and gives its own again, and the solver hears that. The reward is 1
    where the solver's last answer is the right number, else 0, and both agents learn from it.
    """

    def __init__(self, rounds: int = 1) -> None:
        self.rounds = rounds

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any, model: str) -> float:
        policy = Policy(base_url, api_key, http_client, model)
        solver, critic = (policy.take_over(ChatAgent(SYSTEM, model=policy.backend())) for _ in range(2))
        society = RolePlaying(
            "solver",
            "critic",
            task_prompt=question(data),
            with_task_specify=False,
            assistant_agent=solver,
            user_agent=critic,
        )
        await converse(critic, [question(data)], policy)
        answer = await converse(solver, [question(data)], policy)
        for _ in range(self.rounds):
            heard = BaseMessage.make_assistant_message("solver", answer)
            solved, _ = await society.astep(heard)
            answer = solved.msg.content
        return score(answer, data)
