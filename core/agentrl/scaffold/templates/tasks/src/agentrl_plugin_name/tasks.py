"""The task set ``plugin-name``: what agents are asked to do."""

from __future__ import annotations

import random
from typing import Any

from pydantic import BaseModel, Field


class PluginNameTasks:
    """Sums of two numbers of two digits.

    It is built once a run, and a task is made when it is wanted: a set may be large.
    """

    class Settings(BaseModel):
        """The keys beside the name of the task set."""

        size: int = Field(512, ge=1)
        """How many tasks."""
        seed: int = 0
        """Another seed asks for other sums."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __len__(self) -> int:
        return self.settings.size

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        place = range(len(self))[index]
        draw = random.Random(f"{self.settings.seed}-{place}")
        left, right = draw.randint(10, 99), draw.randint(10, 99)
        return {"question": f"What is {left} + {right}?", "answer": str(left + right)}
