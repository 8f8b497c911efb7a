"""The reward ``plugin-name``: what the answer of an agent is worth."""

from __future__ import annotations

import re
from typing import Any

from agentrl import RewardError
from pydantic import BaseModel


class PluginNameReward:
    """1 for the right number, ``attempt`` for another one, 0 for none.

    It is built once a run, and called with what the agent's ``run`` returned.
    """

    class Settings(BaseModel):
        """The keys beside ``reward.name``."""

        attempt: float = 0.1
        """What a wrong number is worth."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, answer: Any, data: dict[str, Any]) -> float:
        if "answer" not in data:
            raise RewardError("the task has no 'answer'", fix="use other tasks")
        numbers = re.findall(r"-?\d+", str(answer))
        if not numbers:
            return 0.0
        return 1.0 if numbers[-1] == str(data["answer"]) else self.settings.attempt
