"""Running an agent of the SDK for one episode."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from agents import Agent, AgentsException, RunConfig, Runner, RunResult, Session, SQLiteSession

from agentrl.errors import ConfigError, PolicyError
from agentrl_openai_agents.answers import answer_of
from agentrl_openai_agents.model import Endpoint, PolicyModel
from agentrl_openai_agents.outcomes import outcome_of
from agentrl_openai_agents.turns import Turn

__all__ = ["converse"]

NewSession = Callable[[], Session]


async def converse(
    agent: Agent[Any],
    turns: Sequence[Turn],
    endpoint: Endpoint,
    *,
    max_turns: int | None = None,
    context: Any = None,
    new_session: NewSession | None = None,
) -> Any:
    """The answer of ``agent`` to the last of the user's ``turns``, said one after another in one session.

    Every model call goes to ``endpoint``, those of agents that it hands off to or uses as tools included.
    ``max_turns`` limits the calls of each turn, by default as the SDK does; ``context`` is what tools are given.
    Raises ``PolicyError`` for what the policy did wrong, ``AgentError`` for a run that cannot end by itself; what the
    agent's own code and the gateway raise passes through.
    """
    model = PolicyModel(endpoint)
    options: dict[str, Any] = {"run_config": _run_config(model), "context": context} | _limit(max_turns)
    async with AsyncExitStack() as stack:
        if new_session is not None or len(turns) > 1:
            options["session"] = session = (new_session or _in_memory)()
            stack.push_async_callback(_close, session)
        for turn in turns:
            answer = answer_of(await _run(agent, turn, model, options))
    return answer


def _run_config(model: PolicyModel) -> RunConfig:
    return RunConfig(model=model, tracing_disabled=True, tool_not_found_behavior="return_error_to_model")


def _limit(max_turns: int | None) -> dict[str, int]:
    if max_turns is None:  # Which the SDK would take for no limit at all.
        return {}
    if not isinstance(max_turns, int) or max_turns < 1:
        raise ConfigError(f"agent.kwargs.max_turns={max_turns!r} is no number of turns", fix="set 1 or more")
    return {"max_turns": max_turns}


async def _run(agent: Agent[Any], turn: Turn, model: PolicyModel, options: Mapping[str, Any]) -> RunResult:
    ended: AgentsException | None = None
    try:
        result = await Runner.run(agent, turn, **options)
    except AgentsException as error:
        ended = error
    except UnicodeEncodeError as error:
        if model.halved is None:
            raise
        mistake = f"it called {model.halved!r} with half a character among the arguments"
        raise PolicyError(mistake, answer=model.last_words) from error
    if model.failure is not None:
        raise model.failure
    if ended is not None:
        raise outcome_of(ended, model.last_words)
    return result


def _in_memory() -> Session:
    return SQLiteSession("episode")


async def _close(session: Session) -> None:
    """End a session that can be ended, whether or not that has to be waited for."""
    closed = getattr(session, "close", lambda: None)()
    if inspect.isawaitable(closed):
        await closed
