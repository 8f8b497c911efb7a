"""``ranked-judge``: a language model ranks the answers of a group by a rubric.

Let ``n`` answers be compared, and let ``r`` be the mean over all orders of an answer's rank, 1 for the best, where
answers that tie share the mean of their places. Its reward is ``(n - r) / (n - 1)``: 1 for one that is always the best
and alone at that, 0 for one that is always the worst, and 0.5 in the mean over the group. Equal answers are shown to
the judge once, and tie.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from agentrl.errors import BudgetError, RewardError
from agentrl.rewards.judging.judge import Judge
from agentrl.rewards.judging.settings import RankedJudgeSettings
from agentrl.rewards.judging.verdicts import (
    RANKING_SCHEMA,
    ranking_instructions,
    read_ranking,
    shown_answer,
    shown_task,
    to_text,
)
from agentrl.rollout.contract import EpisodeKey, EpisodeView

__all__ = ["RankedJudge", "orders_of", "rewards_of"]

_MIDDLE = 0.5


class RankedJudge(Judge):
    """In training, the mean rank that a model gives the answer within its group; else its score for it alone.

    A rank among the answers of one policy says nothing about how good that policy is, so an episode of an evaluation is
    scored by the same rubric as `judge` scores it.
    """

    Settings = RankedJudgeSettings

    def __init__(self, settings: RankedJudgeSettings) -> None:
        """Raises ``ConfigError`` where the environment does not hold the endpoint's key."""
        super().__init__(settings)
        self._orders, self._seed = settings.orders, settings.seed

    async def score_group(
        self, answers: Sequence[Any], data: Mapping[str, Any], *, episodes: Sequence[EpisodeView]
    ) -> Sequence[float | RewardError]:
        """The rewards of a group's answers by their ranks. Where one order gets no verdict, none is rewarded.

        The place that chance gave an answer in the orders that are left would count for it. Raises as ``judge`` does.
        """
        settings = self._settings
        texts = [to_text(shown_answer(answer, view, settings)) for answer, view in zip(answers, episodes, strict=True)]
        distinct = list(dict.fromkeys(texts))
        if len(distinct) == 1:
            return [_MIDDLE] * len(answers)
        task = to_text(shown_task(data, settings.fields))
        orders = orders_of(len(distinct), self._orders, self._seed, episodes[0].key)
        ranked = await asyncio.gather(*(self._ranks(task, distinct, order) for order in orders), return_exceptions=True)
        for kind in (BudgetError, BaseException):  # What stops the run comes first.
            for each in ranked:
                if isinstance(each, kind):
                    raise each
        places = [texts.count(text) for text in distinct]
        rewards = rewards_of([ranks for ranks in ranked if isinstance(ranks, list)], places)
        return [rewards[distinct.index(text)] for text in texts]

    async def _ranks(self, task: str, answers: Sequence[str], order: Sequence[int]) -> list[float]:
        """The rank of each of ``answers`` where the judge is shown them in ``order``, a list of indices."""
        listed = ",\n".join(f'"{number}": {answers[index]}' for number, index in enumerate(order, start=1))
        shown = f'{{"task": {task},\n"answers": {{\n{listed}\n}}}}'
        read = partial(read_ranking, count=len(answers))
        ranks = await self._endpoint.ask(ranking_instructions(self._settings), shown, RANKING_SCHEMA, read)
        by_answer = [0.0] * len(answers)
        for rank, index in zip(ranks, order, strict=True):
            by_answer[index] = rank
        return by_answer


def orders_of(count: int, orders: int, seed: int, key: EpisodeKey) -> list[list[int]]:
    """``orders`` orders of ``count`` answers of the group of ``key``: random ones, each followed by its reverse."""
    chance = random.Random(f"{seed}-{key.phase}-{key.group}-{key.task}")
    found: list[list[int]] = []
    while len(found) < orders:
        shuffled = chance.sample(range(count), count)
        found += [shuffled, shuffled[::-1]]
    return found[:orders]


def rewards_of(ranked: Sequence[Sequence[float]], places: Sequence[int]) -> list[float]:
    """The reward of each answer from its ranks in several orders, as the module's docstring defines it.

    ``ranked`` are ranks among different answers, and ``places`` says how many equal ones each of them stands for, at
    least two in all.
    """
    total = sum(places)
    means = [0.0] * len(places)
    for ranks in ranked:
        for index, rank in enumerate(ranks):
            better = sum(held for other, held in zip(ranks, places, strict=True) if other < rank)
            tied = sum(held for other, held in zip(ranks, places, strict=True) if other == rank)
            means[index] += (better + (tied + 1) / 2) / len(ranked)
    return [(total - mean) / (total - 1) for mean in means]
