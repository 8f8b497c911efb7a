"""What the user of an agent says, as a task has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from agents import TResponseInputItem

from agentrl.errors import AgentError

__all__ = ["Turn", "user_turns"]

Turn = str | list[TResponseInputItem]
"""What an agent is given at once: a text, or messages and other items of the SDK."""

_FIELDS = ("question", "prompt", "input", "messages")


def user_turns(data: Mapping[str, Any], field: str | None = None) -> list[Turn]:
    """The turns in a field of the task, by default the first that it has of ``_FIELDS``.

    A text is one turn, and so is a list of messages; a list of texts is several. Raises ``AgentError`` where the
    field is missing or holds anything else.
    """
    name = _found(data, field)
    match data[name]:
        case str(text):
            return [text]
        case [*items] if items and all(isinstance(item, str) for item in items):
            return cast("list[Turn]", items)
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
