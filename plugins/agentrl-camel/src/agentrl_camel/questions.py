"""What is said to an agent: a field of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.errors import AgentError

__all__ = ["FIELDS", "turns_of"]

FIELDS = ("question", "prompt", "input", "messages")
"""Where a task's text is looked for, in this order."""


def turns_of(data: Mapping[str, Any], field: str | None) -> list[str]:
    """What the user says in turn: the text in ``field`` of the task, or the texts in its list.

    Raises ``AgentError`` for a task without such a field.
    """
    names = FIELDS if field is None else (field,)
    name = next((name for name in names if name in data), None)
    if name is None:
        raise AgentError(
            f"the task has no field {' or '.join(map(repr, names))}, only {', '.join(map(repr, data)) or 'no field'}",
            fix="set agent.kwargs.input to the field that holds what is said to the agent",
        )
    value = data[name]
    turns = [value] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise AgentError(
            f"field {name!r} of the task is {value!r:.80}",
            fix="what is said to the agent is a text, or a list of texts: one for each turn of the user",
        )
    return turns
