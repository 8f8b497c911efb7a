"""Talking to a CAMEL agent, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from camel.agents import ChatAgent
from camel.responses import ChatAgentResponse
from pydantic import BaseModel

from agentrl.errors import AgentError, PolicyError
from agentrl_camel.policy import Policy

__all__ = ["converse"]


async def converse(agent: ChatAgent, turns: Sequence[str], policy: Policy) -> Any:
    """Say ``turns`` to ``agent``, one after another, and return what it answers to the last.

    That is its text; where the agent asks for structured answers, the object as plain JSON; and where it ends in
    calls of external tools, those, each with ``name`` and ``arguments``. Raises ``PolicyError`` where the policy
    calls tools without end, and ``AgentError`` where the agent stops for a reason of its own.
    """
    answer: Any = None
    for turn in turns:
        response = await agent.astep(turn)
        answer = _answer(agent, response, policy)
    return answer


def _answer(agent: ChatAgent, response: Any, policy: Policy) -> Any:
    assert isinstance(response, ChatAgentResponse), response
    if requests := response.info["external_tool_call_requests"]:
        return [{"name": request.tool_name, "arguments": request.args} for request in requests]
    if not response.msgs:
        reasons = ", ".join(map(str, response.info["termination_reasons"]))
        raise AgentError(f"the agent stopped without an answer: {reasons}")
    if _was_cut_off(agent, response):
        raise PolicyError(f"the policy had not come to an end after {agent.max_iteration} calls", answer=policy.said)
    parsed = response.msgs[-1].parsed
    return parsed.model_dump(mode="json") if isinstance(parsed, BaseModel) else response.msgs[-1].content


def _was_cut_off(agent: ChatAgent, response: ChatAgentResponse) -> bool:
    """Whether ``max_iteration`` ended the step, while tools were called or the terminators waited for more."""
    if agent.response_terminators:
        return not response.terminated
    reasons: list[str] = response.info["termination_reasons"]
    return reasons == ["tool_calls"]
