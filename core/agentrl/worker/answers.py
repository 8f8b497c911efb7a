"""What a worker says of an episode that has ended."""

from __future__ import annotations

import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

import agentrl
from agentrl.agents.raising import describe
from agentrl.errors import AgentError, PolicyError
from agentrl.redaction import redact
from agentrl.worker.protocol import LONGEST, encode, error_to_json, unfit

__all__ = ["done", "failed"]

_CORE = Path(agentrl.__file__).parent


def done(episode: object, returned: Any) -> bytes:
    """The answer for an agent that returned, or a failure where that cannot be sent."""
    try:
        return _fitting({"type": "done", "id": episode, "returned": returned}, "what the agent returned", returned)
    except AgentError as error:
        return failed(episode, error)


def failed(episode: object, error: BaseException) -> bytes:
    """The answer for an agent that raised. Unless that is an outcome, the traceback goes to standard error."""
    if not isinstance(error, PolicyError):
        print(f"episode {episode} failed:\n{_authors_traceback(error)}", end="", file=sys.stderr, flush=True)
    try:
        answer = getattr(error, "answer", None)
        return _fitting({"type": "failed", "id": episode, "error": error_to_json(error)}, "the policy's answer", answer)
    except AgentError as unsendable:
        return failed(episode, unsendable)


def _fitting(message: dict[str, Any], what: str, value: Any) -> bytes:
    """``message`` as a line, if all of ``value`` in it arrives. Raises ``AgentError`` where it would not."""
    if inspect.iscoroutine(value):
        value.close()
        raise AgentError("the agent is a plain function that returned a coroutine", fix="make it `async def`")
    try:
        fault = unfit(value, what)
        if fault is None:
            line = encode(message)
    except Exception as error:
        fault = f"{what}, which raises {describe(error)}"
    if fault is not None:
        raise AgentError(f"JSON cannot carry {fault}", fix="return a number, or what is made of dicts, lists and text")
    if len(line) > LONGEST:
        raise AgentError(f"{what} takes {len(line)} bytes, more than {LONGEST}", fix="return what the reward needs")
    return line


def _authors_traceback(error: BaseException) -> str:
    """The traceback without the frames that lead to the agent's code, and without secrets."""
    trace = error.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_CORE):
        trace = trace.tb_next
    return redact("".join(traceback.format_exception(type(error), error, trace or error.__traceback__)))
