"""A conversation with a CAMEL agent: what a task says to it, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camel.agents import ChatAgent
from camel.responses import ChatAgentResponse
from pydantic import BaseModel

from agentrl import AgentError, PolicyError
from agentrl_camel.policy import Policy

__all__ = ["converse", "turns_of"]

_FIELDS = ("question", "prompt", "input", "messages")
"""The fields in which a task's text is looked for, in this order."""


def turns_of(data: Mapping[str, Any], field: str | None) -> list[str]:
    """The user's turns: the text in ``field`` of the task ``data``, or the texts of the list in it.

    Without ``field`` it is the first of ``question``, ``prompt``, ``input`` and ``messages`` that the task has. Raises
    ``AgentError`` where the field is missing, or holds anything else.
    """
    names = _FIELDS if field is None else (field,)
    name = next((name for name in names if name in data), None)
    if name is None:
        raise AgentError(
            f"the task has no field {' or '.join(map(repr, names))}, only {', '.join(map(repr, data)) or 'no field'}",
            fix="set agent.kwargs.input to the field that holds what is said to the agent",
        )
    value = data[name]
    turns = [value] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise AgentError(
            f"field {name!r} of the task is {value!r:.80}",
            fix="what is said to the agent is a text, or a list of texts: one for each turn of the user",
        )
    return turns


async def converse(agent: ChatAgent, turns: Sequence[str], policy: Policy) -> Any:
    """Say ``turns`` to ``agent``, one after another, and return its answer to the last.

    The answer is the text; for an agent with structured answers the object as plain JSON; and for one that ends in
    calls of external tools a list of them, each with ``name`` and ``arguments``. Raises ``PolicyError`` where the
    policy still calls tools after ``max_iteration`` calls, and ``AgentError`` where the agent stops for a reason of its
    own.
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
        mistake = f"the policy had not come to an end after {agent.max_iteration} calls"
        raise PolicyError(mistake, answer=policy.said, limit="turns")
    parsed = response.msgs[-1].parsed
    return parsed.model_dump(mode="json") if isinstance(parsed, BaseModel) else response.msgs[-1].content


def _was_cut_off(agent: ChatAgent, response: ChatAgentResponse) -> bool:
    """Whether ``max_iteration`` ended the step while tools were being called or terminators waited for more."""
    if agent.response_terminators:
        return not response.terminated
    reasons: list[str] = response.info["termination_reasons"]
    return reasons == ["tool_calls"]
