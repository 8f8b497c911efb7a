"""What the bundled agents read of a task: a `question`, and the `answer` that it is scored against."""

from __future__ import annotations

from typing import Any

from agentrl.errors import AgentError
from agentrl.rewards.matching import NumericMatch

__all__ = ["question", "score"]

score = NumericMatch()
"""``score(reply, data)`` is 1 where the last number of a reply is the task's answer, else 0."""


def question(data: dict[str, Any]) -> str:
    """What the task asks. Raises ``AgentError`` for a task of another shape."""
    if not isinstance(data.get("question"), str):
        raise AgentError(
            f"the task has no text in a field 'question', only {', '.join(map(repr, data)) or 'no field at all'}",
            fix="use tasks with the fields `question` and `answer`",
        )
    return str(data["question"])
