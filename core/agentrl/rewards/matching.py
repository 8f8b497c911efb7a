"""Rewards that compare an answer with the truth in the task: as text, by a pattern, as numbers, as mathematics.

Each gives 1 for a right answer and 0 for any other. The truth is a field of the task, ``answer`` unless the key
``field`` names another; a task without it fails the episode with ``RewardError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, field_validator

from agentrl.config.section import Section
from agentrl.errors import RewardError
from agentrl.extras import require
from agentrl.loops import run_in_thread
from agentrl.rewards.verifier import Verifier

__all__ = ["ExactMatch", "MathVerify", "NumericMatch", "RegexMatch", "last_number"]

# A minus is a sign where it cannot be a subtraction, a comma is part of a number where it groups thousands.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?"
)


class _TruthSettings(Section):
    """The key that rewards with a truth have in common."""

    field: str = "answer"
    """The field of the task that holds the truth."""


def _truth_of(data: Mapping[str, Any], field: str) -> Any:
    """The truth of a task. Raises ``RewardError`` where the task lacks the field, or holds null in it."""
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


class ExactMatch:
    """1 where the answer equals the truth as text, white space around either aside; else 0."""

    class Settings(_TruthSettings):
        ignore_case: bool = False
        """Whether upper and lower case count as the same."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or self.Settings()

    def __call__(self, answer: object, data: Mapping[str, Any]) -> float:
        return float(self._plain(answer) == self._plain(_truth_of(data, self._settings.field)))

    def _plain(self, value: object) -> str:
        text = str(value).strip()
        return text.casefold() if self._settings.ignore_case else text


class RegexMatch:
    """1 where what a pattern finds in the answer equals the truth; without a truth, 1 where it finds anything."""

    class Settings(Section):
        """Keys of `regex`."""

        pattern: str = Field(min_length=1)
        """A Python regular expression. What it finds is its first group, where it has one, else all that it matches."""
        field: str | None = "answer"
        """The field of the task that holds the truth; null to score whether the pattern is found at all."""
        take: Literal["first", "last"] = "last"
        """Which match counts where there are several."""

        @field_validator("pattern")
        @classmethod
        def _compiles(cls, pattern: str) -> str:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
            return pattern

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pattern = re.compile(settings.pattern)

    def __call__(self, answer: object, data: Mapping[str, Any]) -> float:
        finds = list(self._pattern.finditer(str(answer)))
        if self._settings.field is None:
            return float(bool(finds))
        truth = str(_truth_of(data, self._settings.field)).strip()
        if not finds:
            return 0.0
        find = finds[-1 if self._settings.take == "last" else 0]
        return float((find[1] or "" if self._pattern.groups else find[0]).strip() == truth)


def last_number(value: object) -> Decimal | None:
    """The last number in the text of ``value``, exactly as written; ``None`` where there is none.

    Thousands may be grouped by commas; a minus sign, a decimal point and an exponent are part of a number.
    """
    found = _NUMBER.findall(str(value))
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


class NumericMatch:
    """1 where the last number of the answer equals the last number of the truth; else 0."""

    class Settings(_TruthSettings):
        tolerance: float = Field(0.0, ge=0)
        """The largest absolute difference that counts as equal."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or self.Settings()

    def __call__(self, answer: object, data: Mapping[str, Any]) -> float:
        """Raises ``RewardError`` for a truth that holds no number."""
        truth = _truth_of(data, self._settings.field)
        expected = last_number(truth)
        if expected is None:
            raise RewardError(
                f"the truth {truth!r} in the task's field {self._settings.field!r} holds no number",
                fix="score with exact-match or math-verify, or set `field` of the reward",
            )
        found = last_number(answer)
        return float(found is not None and abs(found - expected) <= Decimal(str(self._settings.tolerance)))


class MathVerify:
    """1 where the answer is mathematically equal to the truth (fractions, LaTeX, sets, equations); else 0.

    The `math-verify` library compares, in a process of its own; one that takes longer than ``timeout`` gives 0.
    """

    class Settings(_TruthSettings):
        timeout: float = Field(5.0, gt=0)
        """Seconds that one comparison may take."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Raises ``PluginError`` where `math-verify` is not installed."""
        require("math_verify")
        self._settings = settings or self.Settings()
        self._verifier = Verifier(self._settings.timeout)

    async def __call__(self, answer: object, data: Mapping[str, Any]) -> float:
        truth = str(_truth_of(data, self._settings.field))
        return float(await run_in_thread(self._verifier.equal, truth, str(answer)))
