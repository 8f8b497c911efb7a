"""What an agent of the SDK becomes: an agentrl agent whose answers a reward scores."""

from __future__ import annotations

from typing import Any

from agents import Agent

from agentrl_openai_agents.conversation import converse
from agentrl_openai_agents.model import Endpoint
from agentrl_openai_agents.references import factory
from agentrl_openai_agents.refusals import refuse_hosted
from agentrl_openai_agents.turns import user_turns

__all__ = ["AdaptedAgent"]


class AdaptedAgent:
    """Runs one agent of the SDK for every episode, and never changes it."""

    returns_answer = True

    def __init__(self, agent: Agent[Any]) -> None:
        """Raises ``ConfigError`` for an agent that needs what only the Responses API has."""
        refuse_hosted(agent)
        self._agent = agent

    async def run(
        self,
        data: dict[str, Any],
        *,
        base_url: str,
        api_key: str,
        http_client: Any,
        model: str,
        input: str | None = None,
        max_turns: int | None = None,
        context: bool | str = False,
        session: str | None = None,
    ) -> Any:
        """Do the task and return the final output; see ``converse`` for what is raised.

        The last four come from the config's ``agent.kwargs``. ``input`` is the field of the task that the agent is
        asked (see ``user_turns``). ``max_turns`` limits the model calls for each thing that the user says. With
        ``context: true`` tools have the task as their context, with a reference what that makes of the task.
        ``session`` refers to what makes a session of the SDK for each episode.
        """
        return await converse(
            self._agent,
            user_turns(data, input),
            Endpoint(base_url, api_key, http_client, model),
            max_turns=max_turns,
            context=factory(context, "context")(data) if isinstance(context, str) else data if context else None,
            new_session=factory(session, "session") if session else None,
        )
