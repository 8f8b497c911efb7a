"""Rewards of a group: its episodes wait for the last, are scored together, and are stored with what that gave."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from tests.rollout.dispatching import dispatcher_of, in_time
from tests.rollout.requests import requests_of

from agentrl.agents.result import Reward
from agentrl.errors import BudgetError, PolicyError, RewardError
from agentrl.gateway import SessionSettings
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.rollout.dispatcher import Dispatcher, GroupRequest

SETTINGS = SessionSettings(training=True, versions=(0, 0))


class Ranking:
    """Gives each answer its place in the group, and keeps what it was asked."""

    def __init__(self, *raised: Exception) -> None:
        self.asked: list[list[Any]] = []
        self._raised = list(raised)

    async def of_group(self, answers: Sequence[Any], data: Any, views: Sequence[Any]) -> list[float | RewardError]:
        self.asked.append(list(answers))
        assert [view.key.sample for view in views] == sorted(view.key.sample for view in views)
        await asyncio.sleep(0.01)
        if self._raised:
            raise self._raised.pop()
        return [
            RewardError("no verdict")
            if answer == "unjudged"
            else Reward(sorted(answers, key=str).index(answer), rank=1.0)
            for answer in answers
        ]

    async def alone(self, answer: Any, data: Any, view: Any) -> float:
        return 0.25


def ranked(agent: Any, ranking: Ranking, kept: list[Episode], **keys: Any) -> Dispatcher:
    dispatcher = dispatcher_of(agent, kept=kept, **keys)
    runner = dataclasses.replace(dispatcher.runner, score=ranking.alone, score_group=ranking.of_group)
    return dataclasses.replace(dispatcher, runner=runner)


def answering(*answers: Any) -> Any:
    """An agent whose episodes give ``answers`` in the order in which they start; an exception is raised."""
    left = list(answers)

    async def agent(data: Any) -> Any:
        answer = left.pop(0)
        await asyncio.sleep(0.01 * len(left))  # The first to start ends last.
        if isinstance(answer, Exception):
            raise answer
        return answer

    return agent


def requests(samples: int, count: int = 1) -> list[GroupRequest]:
    return requests_of([{"number": number} for number in range(count)], lambda key: SETTINGS, samples=samples)


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_a_group_is_scored_once_and_stored_with_its_rewards(concurrency: int) -> None:
    kept: list[Episode] = []
    ranking = Ranking()
    agent = answering("b", "a", "c")
    (group,) = in_time(ranked(agent, ranking, kept, concurrency=concurrency).collect(requests(3)))
    assert ranking.asked == [["b", "a", "c"]]
    assert [episode.reward for episode in group.episodes] == [1.0, 0.0, 2.0]
    assert [dict(episode.reward_parts) for episode in group.episodes] == [{"rank": 1.0}] * 3
    assert sorted(kept, key=lambda episode: episode.key.sample) == list(group.episodes)


def test_what_failed_or_was_rejected_is_not_compared_and_a_mistake_is() -> None:
    kept: list[Episode] = []
    ranking = Ranking()
    agent = answering("b", ValueError("broken"), None, PolicyError("no tool", answer="a"), "unjudged")
    (group,) = in_time(ranked(agent, ranking, kept, concurrency=5).collect(requests(5)))
    assert ranking.asked == [["b", "a", "unjudged"]]
    assert [episode.outcome for episode in group.episodes] == ["rewarded", "failed", "rejected", "rewarded", "failed"]
    assert [episode.reward for episode in group.episodes] == [1.0, None, None, 0.0, None]
    assert [episode.failure and episode.failure.side for episode in group.episodes][4] == "reward"
    assert len(kept) == 5


def test_where_the_whole_scoring_fails_so_do_the_episodes_and_the_next_group_goes_on() -> None:
    kept: list[Episode] = []
    ranking = Ranking(RewardError("the judge is away"))
    dispatcher = ranked(answering("b", "a", "b", "a"), ranking, kept, concurrency=2)
    groups = in_time(dispatcher.collect(requests(2, count=2)))
    failed = [[episode.failure is not None for episode in group.episodes] for group in groups]
    assert sorted(failed) == [[False, False], [True, True]]
    assert len(kept) == 4


def test_a_scoring_without_end_is_ended_and_fails_its_episodes() -> None:
    class Endless(Ranking):
        async def of_group(self, answers: Any, data: Any, views: Any) -> Any:
            await asyncio.sleep(60)

    kept: list[Episode] = []
    dispatcher = ranked(answering("b", "a", 1, 2), Endless(), kept, concurrency=4, budget=1.0)
    dispatcher = dataclasses.replace(dispatcher, runner=dataclasses.replace(dispatcher.runner, timeout=0.2))
    reasons: list[str] = []

    async def scenario() -> None:
        async with contextlib.aclosing(dispatcher.dispatch(requests(4))) as groups:
            async for group in groups:
                reasons.extend(str(episode.failure) for episode in group.episodes)
                break

    in_time(scenario())
    assert len(reasons) == 4
    assert "did not score the 4 answers of a group within 0.2 s" in reasons[0]


def test_a_spent_budget_is_no_failure_of_an_episode_and_stops() -> None:
    kept: list[Episode] = []
    ranking = Ranking(BudgetError("spent"))
    with pytest.raises(BudgetError, match="spent"):
        in_time(ranked(answering("b", "a"), ranking, kept).collect(requests(2)))
    assert kept == []


def test_stored_answers_are_compared_with_new_ones_and_keep_their_rewards() -> None:
    kept: list[Episode] = []
    ranking = Ranking()
    (request,) = requests(3)
    stored = [
        Episode(EpisodeKey("train", 0, 0, 0), request.data, "rewarded", 7.0, answer="a"),
        Episode(EpisodeKey("train", 0, 0, 2), request.data, "rejected", None),
    ]
    request = dataclasses.replace(request, kept=stored)
    (group,) = in_time(ranked(answering("b"), ranking, kept).collect([request]))
    assert ranking.asked == [["a", "b"]]
    assert [episode.reward for episode in group.episodes] == [7.0, 1.0, None]
    assert [episode.key.sample for episode in kept] == [1]


def test_an_episode_of_an_evaluation_is_scored_alone() -> None:
    kept: list[Episode] = []
    ranking = Ranking()
    request = dataclasses.replace(requests(2)[0], phase="eval")
    (group,) = in_time(ranked(answering("b", "a"), ranking, kept).collect([request]))
    assert [episode.reward for episode in group.episodes] == [0.25, 0.25]
    assert ranking.asked == []


def test_a_consumer_that_leaves_while_a_group_is_scored_leaves_nothing_behind() -> None:
    kept: list[Episode] = []

    class Slow(Ranking):
        begun = asyncio.Event()

        async def of_group(self, answers: Any, data: Any, views: Any) -> Any:
            self.begun.set()
            await asyncio.sleep(60)

    async def scenario() -> None:
        task = asyncio.create_task(ranked(answering("b", "a"), Slow(), kept).collect(requests(2)))
        await Slow.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    in_time(scenario())
    assert kept == []
