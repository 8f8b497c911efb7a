"""An agent of the SDK as an agentrl agent whose answers a reward scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import agents
from agents import Agent

from agentrl import ConfigError, Plugins
from agentrl_openai_agents.conversation import converse, user_turns
from agentrl_openai_agents.model import PolicyEndpoint

__all__ = ["AdaptedAgent"]

_SERVED = tuple(getattr(agents, name) for name in ("FunctionTool", "CustomTool") if hasattr(agents, name))
"""The tools that the policy can call; those of free text are newer than some releases of the SDK."""


class AdaptedAgent:
    """Runs one agent of the SDK in every episode, and never changes it."""

    returns_answer = True

    def __init__(self, agent: Agent[Any]) -> None:
        """Raises ``ConfigError`` for an agent that needs what only OpenAI's servers have."""
        _refuse_hosted(agent)
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
        api: str = "chat",
    ) -> Any:
        """Do the task and return the final output; raises what ``converse`` raises.

        The last five parameters are keys of ``agent.kwargs``. ``input`` is the field of the task that the agent is
        asked (see ``user_turns``). ``max_turns`` limits the model calls for each thing that the user says. ``context``
        is ``true`` to give tools the task as their context, or a reference to a function that makes the context from
        the task. ``session`` is a reference to a callable without parameters that makes an SDK session for an episode.
        ``api`` is the protocol in which the policy is asked: ``chat`` or ``responses``.
        """
        return await converse(
            self._agent,
            user_turns(data, input),
            PolicyEndpoint(base_url, api_key, http_client, model, api),
            max_turns=max_turns,
            context=_referred(context, "context")(data) if isinstance(context, str) else data if context else None,
            new_session=_referred(session, "session") if session else None,
        )


@lru_cache
def _referred(reference: str, key: str) -> Callable[..., Any]:
    """The callable that ``reference`` means, the value of ``agent.kwargs.KEY``: ``pkg.mod:Obj`` or ``file.py:Obj``.

    Raises ``ConfigError`` where it means nothing, or what cannot be called.
    """
    if not {":", "."} & set(reference):
        raise ConfigError(f"agent.kwargs.{key}={reference!r} refers to nothing", fix="write pkg.mod:Obj or file.py:Obj")
    made = Plugins().get(key, reference)
    if not callable(made):
        raise ConfigError(
            f"agent.kwargs.{key}={reference!r} is {type(made).__name__}, which cannot be called",
            fix=f"name a function or class that makes a {key}",
        )
    factory: Callable[..., Any] = made
    return factory


def _refuse_hosted(agent: Agent[Any]) -> None:
    """Raise ``ConfigError`` where ``agent``, or one that it hands off to, has a tool that OpenAI would run for it, or
    instructions that are kept at OpenAI."""
    for each in _with_handoffs(agent, []):
        for tool in each.tools:
            if not isinstance(tool, _SERVED):
                raise ConfigError(
                    f"agent {each.name!r} has the tool {tool.name!r} ({type(tool).__name__}), "
                    "which the policy cannot be offered",
                    fix="give it a function tool that does the same",
                )
        if each.prompt is not None:
            raise ConfigError(
                f"the instructions of agent {each.name!r} are a prompt kept at OpenAI",
                fix="give it their text as `instructions`",
            )


def _with_handoffs(agent: Agent[Any], seen: list[Agent[Any]]) -> Iterator[Agent[Any]]:
    """``agent`` and the agents that it can hand off to, as far as they are known before a run."""
    if any(agent is other for other in seen):
        return
    seen.append(agent)
    yield agent
    for target in agent.handoffs:
        if isinstance(target, Agent):
            yield from _with_handoffs(target, seen)
