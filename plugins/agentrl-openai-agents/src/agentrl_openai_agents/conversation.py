"""One episode of an agent of the SDK: what a task says to it, how the run ends, and what it answers."""

from __future__ import annotations

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, cast

import agents
from agents import (
    Agent,
    AgentsException,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    RunResult,
    Session,
    SQLiteSession,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
    TResponseInputItem,
    UserError,
)
from pydantic_core import to_jsonable_python

import agentrl
from agentrl import AgentError, ConfigError, PolicyError
from agentrl_openai_agents.model import PolicyEndpoint, PolicyModel, policy_model

__all__ = ["UserTurn", "converse", "user_turns"]

UserTurn = str | list[TResponseInputItem]
"""What an agent is given at once: a text, or messages and other items of the SDK."""

NewSession = Callable[[], Session]

_FIELDS = ("question", "prompt", "input", "messages")
"""The fields in which a task's text is looked for, in this order."""

_MISTAKES = (
    ModelBehaviorError,
    ModelRefusalError,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)
"""The exceptions of the SDK that are mistakes of the policy, beside that of its limit of turns."""

_LIBRARIES = (*(os.path.dirname(str(each.__file__)) for each in (agentrl, agents)), sysconfig.get_path("stdlib"), "<")
"""What the file names of frames begin with that are not an author's: those of agentrl, of the SDK and of Python."""


def user_turns(data: Mapping[str, Any], field: str | None = None) -> list[UserTurn]:
    """The user's turns in the field ``field`` of the task ``data``.

    Without ``field`` it is the first of ``question``, ``prompt``, ``input`` and ``messages`` that the task has. A text
    is one turn, and so is a list of messages; each text of a list of texts is one. Raises ``AgentError`` where the
    field is missing or holds anything else.
    """
    name = _found(data, field)
    match data[name]:
        case str(text):
            return [text]
        case [*items] if items and all(isinstance(item, str) for item in items):
            return cast("list[UserTurn]", items)
        case [*items] if items and all(isinstance(item, Mapping) for item in items):
            return [cast("list[TResponseInputItem]", items)]
        case other:
            raise AgentError(
                f"the task's field {name!r} is {other!r:.80}",
                fix="it may be a text, a list of messages, or a list of texts to be said one after another",
            )


def _found(data: Mapping[str, Any], field: str | None) -> str:
    names = _FIELDS if field is None else (field,)
    for name in names:
        if name in data:
            return name
    there = ", ".join(map(repr, data)) or "no field at all"
    raise AgentError(
        f"the task has no field {' or '.join(map(repr, names))}, only {there}",
        fix="name the field that the agent is asked with agent.kwargs.input",
    )


async def converse(
    agent: Agent[Any],
    turns: Sequence[UserTurn],
    endpoint: PolicyEndpoint,
    *,
    max_turns: int | None = None,
    context: Any = None,
    new_session: NewSession | None = None,
) -> Any:
    """Say ``turns`` to ``agent``, one after another in one session, and return its answer to the last.

    Every model call goes to ``endpoint``, those of agents that it hands off to or uses as tools included. ``max_turns``
    limits the calls of each turn, by default as the SDK does; ``context`` is what tools are given as theirs;
    ``new_session`` makes the session, which is closed at the end. Raises ``PolicyError`` for a mistake of the policy,
    ``AgentError`` for a run that cannot end by itself, and what the agent's own code and the gateway raise.
    """
    model = policy_model(endpoint)
    options: dict[str, Any] = {"run_config": _run_config(model), "context": context} | _limit(max_turns)
    async with AsyncExitStack() as stack:
        if new_session is not None or len(turns) > 1:
            options["session"] = session = (new_session or _in_memory)()
            stack.push_async_callback(_close, session)
        for turn in turns:
            answer = _answer_of(await _run(agent, turn, model, options))
    return answer


def _run_config(model: PolicyModel) -> RunConfig:
    return RunConfig(model=model, tracing_disabled=True, tool_not_found_behavior="return_error_to_model")


def _limit(max_turns: int | None) -> dict[str, int]:
    if max_turns is None:  # The SDK would take None for no limit at all.
        return {}
    if not isinstance(max_turns, int) or max_turns < 1:
        raise ConfigError(f"agent.kwargs.max_turns={max_turns!r} is no number of turns", fix="set 1 or more")
    return {"max_turns": max_turns}


async def _run(agent: Agent[Any], turn: UserTurn, model: PolicyModel, options: Mapping[str, Any]) -> RunResult:
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
        raise _outcome_of(ended, model.last_words)
    return result


def _in_memory() -> Session:
    return SQLiteSession("episode")


async def _close(session: Session) -> None:
    """Close a session that can be closed, by a method that may be a coroutine function."""
    closed = getattr(session, "close", lambda: None)()
    if inspect.isawaitable(closed):
        await closed


def _answer_of(result: RunResult) -> Any:
    """The final output as plain JSON; what JSON cannot express stays as it is.

    Raises ``AgentError`` where the run waits for somebody to approve of a tool's use.
    """
    if result.interruptions:
        names = ", ".join(sorted({str(item.name) for item in result.interruptions}))
        raise AgentError(f"the run waits for approval of {names}", fix="train with needs_approval=False")
    output = result.final_output
    # None would reject the episode; this one ended with an empty answer, which the reward scores.
    return "" if output is None else to_jsonable_python(output, fallback=lambda value: value)


def _outcome_of(error: AgentsException, last_words: str) -> Exception:
    """The exception of an episode whose run ended in ``error``.

    A mistake of the policy is a ``PolicyError`` with ``last_words`` as the answer, or without one where an output
    guardrail stopped it. An input guardrail that turns the task away is an ``AgentError``, for the policy has no part
    in that; so is a tool that raises, with the place in its code. Anything else is ``error`` itself.
    """
    match error:
        case OutputGuardrailTripwireTriggered():
            name = error.guardrail_result.guardrail.get_name()
            return PolicyError(f"the output guardrail {name!r} stopped the answer")
        case InputGuardrailTripwireTriggered():
            return AgentError(
                f"the input guardrail {error.guardrail_result.guardrail.get_name()!r} turned the task away",
                fix="leave such tasks out of the task set, or the guardrail out of the agent",
            )
        case UserError(__cause__=Exception() as cause):
            return AgentError(f"{error.message}{_raised_at(cause)}")
        case MaxTurnsExceeded():
            return PolicyError(str(error), answer=last_words, limit="turns")
        case _ if isinstance(error, _MISTAKES):
            return PolicyError(str(error), answer=last_words)
    return error


def _raised_at(error: BaseException) -> str:
    """`` at FILE:LINE, in FUNCTION`` for the first frame of the traceback in its author's code."""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith(_LIBRARIES):
            return f" at {frame.filename}:{frame.lineno}, in {frame.name}"
    return ""
