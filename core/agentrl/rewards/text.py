"""Rewards that compare text: exact match, and a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from agentrl.config.models import Section
from agentrl.rewards.fields import TruthSettings, truth_of

__all__ = ["ExactMatch", "RegexMatch"]


class ExactMatch:
    """1 where the answer is the truth as text, white space around it aside; else 0."""

    class Settings(TruthSettings):
        ignore_case: bool = False
        """Whether capitals count as small letters."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or self.Settings()

    def __call__(self, answer: object, data: Mapping[str, Any]) -> float:
        return float(self._plain(answer) == self._plain(truth_of(data, self._settings.field)))

    def _plain(self, value: object) -> str:
        text = str(value).strip()
        return text.casefold() if self._settings.ignore_case else text


class RegexMatch:
    """Compares what a pattern finds in the answer with the truth; without a truth, whether it is found."""

    class Settings(Section):
        """Keys of `regex`."""

        pattern: str = Field(min_length=1)
        """A Python regular expression; where it has a group, the first one is what it finds."""
        field: str | None = "answer"
        """Field of the task that holds the truth; null to score whether the pattern is found at all."""
        take: Literal["first", "last"] = "last"
        """Which of several finds counts."""

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
        truth = str(truth_of(data, self._settings.field)).strip()
        if not finds:
            return 0.0
        find = finds[-1 if self._settings.take == "last" else 0]
        return float((find[1] or "" if self._pattern.groups else find[0]).strip() == truth)
