"""CAMEL's own agents, and factories of them, as agentrl agents whose answers a reward scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from camel.agents import ChatAgent

from agentrl import AgentError, ConfigError
from agentrl_camel.conversation import converse, turns_of
from agentrl_camel.copying import Copier
from agentrl_camel.policy import Policy

__all__ = ["AdaptedAgent", "AdaptedFactory"]

_OFFERED = ("data", "model")
"""The parameters that a factory may have."""


class AdaptedAgent:
    """An agentrl agent that runs a copy of a ``ChatAgent`` in each episode; the original is only read."""

    returns_answer = True

    def __init__(self, agent: ChatAgent) -> None:
        """Raises ``ConfigError`` for an agent of which no copies can be made."""
        self._copier = Copier(agent)

    async def run(
        self,
        data: dict[str, Any],
        *,
        base_url: str,
        api_key: str,
        http_client: Any,
        model: str,
        input: str | None = None,
        max_iteration: int | None = None,
        with_memory: bool | None = None,
    ) -> Any:
        """Say what is in the task's field ``input`` to a new copy, and return its answer as ``converse`` does.

        ``max_iteration`` replaces the agent's own. ``with_memory`` says whether an episode begins with the conversation
        that the agent holds; it has to be given where the agent holds one. All three are keys of ``agent.kwargs``.
        """
        turns = turns_of(data, input)
        policy = Policy(base_url, api_key, http_client, model)
        agent = policy.take_over(self._copier.copy(policy, with_memory=with_memory), max_iteration)
        return await converse(agent, turns, policy)


class AdaptedFactory:
    """An agentrl agent that calls a factory, sync or async, for a new ``ChatAgent`` in each episode.

    The factory is given ``data``, the task, and ``model``, the policy as a model of CAMEL's, as far as its signature
    takes them.
    """

    returns_answer = True

    def __init__(self, factory: Callable[..., Any]) -> None:
        """Raises ``ConfigError`` for a factory that needs other arguments."""
        self._factory = factory
        self._name = getattr(factory, "__qualname__", type(factory).__qualname__)
        parameters = inspect.signature(factory).parameters
        self._takes = [name for name in _OFFERED if name in parameters]
        try:
            inspect.signature(factory).bind(**dict.fromkeys(self._takes))
        except TypeError as error:
            raise ConfigError(
                f"the factory {self._name} cannot be called: {error}",
                fix="it may take `data`, the task, and `model`, the model to train; give the rest defaults",
            ) from error

    async def run(
        self,
        data: dict[str, Any],
        *,
        base_url: str,
        api_key: str,
        http_client: Any,
        model: str,
        input: str | None = None,
        max_iteration: int | None = None,
    ) -> Any:
        """Say what is in the task's field ``input`` to a new agent, and return its answer as ``converse`` does.

        ``max_iteration`` replaces the agent's own. Both are keys of ``agent.kwargs``.
        """
        turns = turns_of(data, input)
        policy = Policy(base_url, api_key, http_client, model)
        agent = policy.take_over(await self._made(data, policy), max_iteration)
        return await converse(agent, turns, policy)

    async def _made(self, data: dict[str, Any], policy: Policy) -> ChatAgent:
        offered: dict[str, Any] = {"data": data}
        if "model" in self._takes:
            offered["model"] = policy.backend()
        made = self._factory(**{name: offered[name] for name in self._takes})
        made = await made if inspect.isawaitable(made) else made
        if not isinstance(made, ChatAgent):
            raise AgentError(f"the factory {self._name} made a {type(made).__name__}", fix="let it return a ChatAgent")
        return made
