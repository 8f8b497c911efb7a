"""What an agent's final output is to the reward that scores it."""

from __future__ import annotations

from typing import Any

from agents import RunResult
from pydantic_core import to_jsonable_python

from agentrl.errors import AgentError

__all__ = ["answer_of"]


def answer_of(result: RunResult) -> Any:
    """The final output as JSON has it: models and dataclasses are dicts; what JSON cannot carry stays as it is.

    Raises ``AgentError`` where the run waits for somebody to approve of a tool's use.
    """
    if result.interruptions:
        names = ", ".join(sorted({str(item.name) for item in result.interruptions}))
        raise AgentError(f"the run waits for approval of {names}", fix="train with needs_approval=False")
    output = result.final_output
    # An episode without an answer is rejected; this one has ended, and said nothing.
    return "" if output is None else to_jsonable_python(output, fallback=lambda value: value)
