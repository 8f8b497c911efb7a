"""What a worker says of an episode that has ended."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable
from typing import Any

from agentrl.agents.exceptions import authors_traceback, describe
from agentrl.errors import AgentError, PolicyError
from agentrl.worker.parts import parts_beside
from agentrl.worker.protocol import LONGEST, encode, error_to_json, unfit

__all__ = ["done", "failed", "say"]


def done(episode: object, returned: Any) -> bytes:
    """The answer for an agent that returned, or a failure where that cannot be sent."""
    try:
        if inspect.iscoroutine(returned):
            returned.close()
            raise AgentError("the agent is a plain function that returned a coroutine", fix="make it `async def`")
        message = {"type": "done", "id": episode, "returned": returned}
        return _line(lambda: {**message, "parts": parts_beside(returned)}, returned, "returned")
    except AgentError as error:
        return failed(episode, error)


def failed(episode: object, error: BaseException) -> bytes:
    """The answer for an agent that raised. Unless that is an outcome, the traceback goes to standard error."""
    if not isinstance(error, PolicyError):
        say(f"episode {episode} failed:\n{authors_traceback(error)}")
    content = error_to_json(error)
    try:
        message = {"type": "failed", "id": episode, "error": content}
        return _line(lambda: message, content.get("answer"), "answer")
    except AgentError as unsendable:
        return failed(episode, unsendable)


def say(text: str) -> None:
    """Write to standard error itself: what an agent has put in the place of ``sys.stderr`` may do anything."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


def _line(message: Callable[[], dict[str, Any]], value: Any, at: str) -> bytes:
    """What ``message`` makes, if ``value`` in it arrives as it is. Raises ``AgentError`` where it would not."""
    try:
        fault = unfit(value, at)
        line = b"" if fault else encode(message())
    except Exception as error:  # The value is the agent's, and may do anything when it is looked at.
        fault = f"{at}, with {describe(error)}"
    if fault:
        raise AgentError(
            f"what the agent returned cannot be sent as JSON: {fault}",
            fix="return a number, or an answer made of dicts, lists, text and numbers",
        )
    if len(line) > LONGEST:
        raise AgentError(f"what the agent returned takes {len(line)} bytes, more than {LONGEST}", fix="return less")
    return line
