"""``judge``: a language model scores an answer by a rubric."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.costs.contract import Meter
from agentrl.rewards.judging.endpoint import JudgeEndpoint
from agentrl.rewards.judging.settings import JudgeSettings
from agentrl.rewards.judging.verdicts import (
    read_score,
    score_schema,
    scoring_instructions,
    shown_answer,
    shown_task,
    to_text,
)
from agentrl.rollout.contract import EpisodeView

__all__ = ["Judge"]


class Judge:
    """The score that a model at an endpoint gives the answer by a rubric, between 0 and 1."""

    Settings = JudgeSettings

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises ``ConfigError`` where the environment does not hold the endpoint's key."""
        self._settings = settings
        self._endpoint = JudgeEndpoint(settings)

    def keep_in(self, folder: Path) -> None:
        """Keep verdicts and costs in the run's folder; see ``KeepingRewardFunction``."""
        self._endpoint.keep_in(folder)

    def report_to(self, meter: Meter) -> None:
        """Report what verdicts cost; see ``ReportingRewardFunction``."""
        self._endpoint.report_to(meter)

    async def __call__(self, answer: Any, data: Mapping[str, Any], *, episode: EpisodeView) -> float:
        """Raises ``RewardError`` where no verdict comes in time, and ``BudgetError`` where the budget is spent."""
        settings = self._settings
        shown = {"task": shown_task(data, settings.fields), "answer": shown_answer(answer, episode, settings)}
        score = await self._endpoint.ask(
            scoring_instructions(settings),
            to_text(shown),
            score_schema(settings.scale),
            partial(read_score, scale=settings.scale),
            stage="rollout" if episode.key.phase == "train" else "evaluation",
        )
        return score / settings.scale
