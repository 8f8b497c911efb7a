"""A reward that compares mathematics: fractions, LaTeX, sets, equations, by the `math-verify` library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from agentrl.extras import require
from agentrl.loops.loop import in_thread
from agentrl.rewards.fields import TruthSettings, truth_of
from agentrl.rewards.verifier import Verifier

__all__ = ["MathVerify"]


class MathVerify:
    """1 where the answer is mathematically the truth; else 0, also where that takes too long to tell."""

    class Settings(TruthSettings):
        timeout: float = Field(5.0, gt=0)
        """Seconds that one comparison may take."""

    def __init__(self, settings: Settings | None = None) -> None:
        require("math_verify")
        self._settings = settings or self.Settings()
        self._verifier = Verifier(self._settings.timeout)

    async def __call__(self, answer: object, data: Mapping[str, Any]) -> float:
        truth = str(truth_of(data, self._settings.field))
        return float(await in_thread(self._verifier.equal, truth, str(answer)))
