"""What rewards compare with: a field of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.config.models import Section
from agentrl.errors import RewardError

__all__ = ["TruthSettings", "truth_of"]


class TruthSettings(Section):
    """The key that every built-in reward takes."""

    field: str = "answer"
    """Field of the task that holds the truth."""


def truth_of(data: Mapping[str, Any], field: str) -> Any:
    """The truth of a task. Raises ``RewardError`` where the task lacks it, or holds null."""
    if field not in data:
        raise RewardError(
            f"the task has no field {field!r} to score against, only {', '.join(map(repr, data)) or 'no fields'}",
            fix="set `field` of the reward to the one that holds the truth",
        )
    if data[field] is None:
        raise RewardError(
            f"the task's field {field!r} is null: there is no truth to score against",
            fix="give the task its truth, or set `field` of the reward to the one that holds it",
        )
    return data[field]
