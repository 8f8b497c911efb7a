"""A reward that compares numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import Field

from agentrl.errors import RewardError
from agentrl.rewards.fields import TruthSettings, truth_of

__all__ = ["NumericMatch", "last_number"]

# A minus is a sign where it cannot be a subtraction, a comma is part of a number where it groups thousands.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?"
)


def last_number(value: object) -> Decimal | None:
    """The last number in the text of ``value``, exactly as written; ``None`` where there is none."""
    found = _NUMBER.findall(str(value))
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


class NumericMatch:
    """1 where the last number of the answer equals the last one of the truth; else 0."""

    class Settings(TruthSettings):
        tolerance: float = Field(0.0, ge=0)
        """How far apart the two may be, absolutely."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or self.Settings()

    def __call__(self, answer: object, data: Mapping[str, Any]) -> float:
        truth = truth_of(data, self._settings.field)
        expected = last_number(truth)
        if expected is None:
            raise RewardError(
                f"the truth {truth!r} in the task's field {self._settings.field!r} holds no number",
                fix="score with exact-match or math-verify, or set `field` of the reward",
            )
        found = last_number(answer)
        return float(found is not None and abs(found - expected) <= Decimal(str(self._settings.tolerance)))
