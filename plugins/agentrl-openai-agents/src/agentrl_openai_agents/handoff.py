"""The example of several agents: a triage that hands over to specialists, and a class that scores their answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents import Agent, Handoff, RunContextWrapper, handoff
from agents.extensions.handoff_filters import remove_all_tools
from pydantic import BaseModel

from agentrl_agents import calculator, math
from agentrl_agents.tasks import question, score
from agentrl_openai_agents.conversation import converse
from agentrl_openai_agents.model import PolicyEndpoint

__all__ = ["TRIAGE", "HandoffAgent"]

Task = dict[str, Any]


class Order(BaseModel):
    """The arguments of a handoff."""

    expression: str


ADDER = Agent[Task](name="Adder", instructions=math.SYSTEM)
MULTIPLIER = Agent[Task](name="Multiplier", instructions="Solve the problem, one digit after another.")


def multiplies(context: RunContextWrapper[Task], agent: object) -> bool:
    """Whether the multiplier is offered to the triage."""
    return "*" in question(context.context)


async def ordered(context: RunContextWrapper[Task], order: Order) -> None:
    """Do nothing with the order: the specialist reads the question itself."""


def specialist(agent: Agent[Task], **options: Any) -> Handoff[Task, Agent[Task]]:
    """A handoff after which ``agent`` reads the conversation as if it had begun with it."""
    return handoff(agent, on_handoff=ordered, input_type=Order, input_filter=remove_all_tools, **options)


# The model tiny has learnt to call one tool, in one spelling: that is what the adder is called by.
TOOL = calculator.TOOL["function"]
call_adder = replace(
    specialist(ADDER, tool_name_override=TOOL["name"], tool_description_override=TOOL["description"]),
    input_json_schema=TOOL["parameters"],
    strict_json_schema=False,
)
call_multiplier = specialist(MULTIPLIER, is_enabled=multiplies)

TRIAGE = Agent[Task](name="Triage", instructions=calculator.SYSTEM, handoffs=[call_adder, call_multiplier])
"""Agents as an application has them, without anything of agentrl."""


class HandoffAgent:
    """Asks ``TRIAGE``. The reward is 1 for the right number, whoever gives it, and 0 for any other."""

    def __init__(self, max_turns: int = 3) -> None:
        self.max_turns = max_turns

    async def run(self, data: Task, *, base_url: str, api_key: str, http_client: Any, model: str) -> float:
        endpoint = PolicyEndpoint(base_url, api_key, http_client, model)
        answer = await converse(TRIAGE, [question(data)], endpoint, max_turns=self.max_turns, context=data)
        return score(answer, data)
