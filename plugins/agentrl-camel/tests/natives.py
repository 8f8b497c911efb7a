"""Agents as users of CAMEL have them, and what an episode of one comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from camel.agents import ChatAgent
from camel.models import BaseModelBackend, ModelFactory

from agentrl import AgentRLError
from agentrl.gateway.contract import Call
from agentrl.tokens.contract import TokenTree
from agentrl_camel.policy import COUNTER

TASK = {"question": "What is 47 + 38?", "answer": "85"}


def call(name: str = "calculator", arguments: str = '{"expression": "47+38"}') -> str:
    """What the policy writes to call a tool."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def calculator(expression: str) -> str:
    """Adds two numbers.

    Args:
        expression: Such as 1+2.
    """
    return str(sum(map(int, expression.split("+"))))


def elsewhere(**config: Any) -> BaseModelBackend:
    """A model of somebody's own, which no episode may reach."""
    return ModelFactory.create(
        "openai-compatible-model",
        "gpt-4o",
        model_config_dict=config,
        url="http://elsewhere.invalid/v1",
        api_key="sk-elsewhere",
        token_counter=COUNTER,
    )


def solver(**settings: Any) -> ChatAgent:
    """A native agent with a tool."""
    return ChatAgent("Solve the problem.", **({"model": elsewhere(), "tools": [calculator]} | settings))


@dataclass(frozen=True)
class Played:
    """An episode that has ended."""

    answer: Any
    """What ``run`` returned, or the exception that it raised."""
    calls: list[Call]
    tree: TokenTree
    refusals: tuple[AgentRLError, ...]

    def said(self, turn: int = -1) -> list[tuple[str, str]]:
        """Role and text of what the policy was asked in a call."""
        return [(message["role"], message["content"]) for message in self.calls[turn].request["messages"]]


Play = Callable[..., Played]
