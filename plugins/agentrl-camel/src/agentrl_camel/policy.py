"""The policy of one episode, for any number of CAMEL agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camel.agents import ChatAgent
from camel.memories import ScoreBasedContextCreator
from camel.models import BaseModelBackend, ModelManager
from openai import AsyncOpenAI

from agentrl.errors import AgentError, ConfigError
from agentrl_camel.backend import PolicyBackend
from agentrl_camel.counting import COUNTER

__all__ = ["MOST_CALLS", "Policy"]

MOST_CALLS = 16
"""How often an agent that sets no ``max_iteration`` may call the model in one step."""


class Policy:
    """The model behind an episode's session. Make one an episode, of what ``run`` is given::

    policy = Policy(base_url, api_key, http_client, model)
    agent = policy.take_over(ChatAgent("Solve the problem.", model=policy.backend(), tools=[calculator]))
    """

    def __init__(self, base_url: str, api_key: str, http_client: Any, model: str = "policy") -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.name = model
        self.client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        self.said = ""
        """The last words of the policy, whichever agent it spoke as."""

    def backend(self, config: Mapping[str, Any] | None = None) -> PolicyBackend:
        """The policy as a model of CAMEL's; ``config`` is as its ``model_config_dict``."""
        return PolicyBackend(self, config or {})

    def take_over(self, agent: ChatAgent, max_iteration: int | None = None) -> ChatAgent:
        """``agent`` itself, with the policy for each of its models, whose configs are kept.

        It summarises nothing and retries nothing by itself, so that every call is one of the conversation, and it
        stops calling tools after ``max_iteration`` calls in a step: by default its own, and else ``MOST_CALLS``.
        Raises ``AgentError`` for an agent of another episode, and ``ConfigError`` for a ``max_iteration`` below 1.
        """
        if max_iteration is not None and max_iteration < 1:
            raise ConfigError(
                f"max_iteration={max_iteration} leaves no call of the model",
                fix="set agent.kwargs.max_iteration to 1 or more",
            )
        manager = agent.model_backend
        agent.model_backend = ModelManager(
            [self._taken(each) for each in manager.models],
            scheduling_strategy=manager.scheduling_strategy.__name__,
        )
        agent.model_type = agent.model_backend.model_type
        agent.summarize_threshold = None
        agent.retry_attempts = 1
        agent.max_iteration = max_iteration or agent.max_iteration or MOST_CALLS
        creator = agent.memory.get_context_creator()
        if isinstance(creator, ScoreBasedContextCreator):
            creator._token_counter = COUNTER
        return agent

    def _taken(self, model: BaseModelBackend) -> BaseModelBackend:
        if not isinstance(model, PolicyBackend):
            return self.backend(model.model_config_dict)
        if model.policy is not self:
            raise AgentError(
                "the agent already belongs to another episode", fix="let the factory make a new ChatAgent in each call"
            )
        return model
