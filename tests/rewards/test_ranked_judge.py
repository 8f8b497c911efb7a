"""The reward ``ranked-judge``: ranks become rewards, ties tie, and the place of an answer gains it nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rewards.scripted_judge import Reply, ScriptedJudge, ranked, scored, shown

from agentrl.config.models import Config
from agentrl.errors import RewardError
from agentrl.plugins import Plugins
from agentrl.rewards import load_reward
from agentrl.rewards.judging.ranked import orders_of, rewards_of
from agentrl.rewards.judging.verdicts import read_ranking
from agentrl.rewards.scoring import Scorer, is_group_reward
from agentrl.rollout.contract import EpisodeKey, EpisodeView

TASK = {"question": "Write a long word."}


@pytest.fixture
def endpoint() -> Iterator[ScriptedJudge]:
    with ScriptedJudge(by_length) as judge:
        yield judge


def by_length(body: dict[str, Any], *, preferred: int = 0) -> Reply:
    """Longer is better; ``preferred`` characters are worth the place of an answer, the first one's most."""
    answers = {int(number): text for number, text in shown(body)["answers"].items()}
    worth = {number: len(text) - preferred * number for number, text in answers.items()}
    tied: dict[int, list[int]] = {}
    for number, value in worth.items():
        tied.setdefault(value, []).append(number)
    return ranked(*(tied[value] for value in sorted(tied, reverse=True)))


def first_is_best(body: dict[str, Any]) -> Reply:
    return ranked(*([int(number)] for number in shown(body)["answers"]))


def scorer_of(endpoint: ScriptedJudge, **keys: Any) -> Scorer:
    part = {"name": "ranked-judge", "rubric": "Longer is better.", "model": "wise", "url": endpoint.url}
    loaded = Config.model_validate({"reward": {**part, "max_retries": 0, **keys}}).reward
    assert loaded is not None
    return Scorer(load_reward(Plugins(), loaded))


def rewards(scorer: Scorer, answers: list[Any], group: int = 0) -> list[Any]:
    views = [EpisodeView(EpisodeKey("train", group, 0, sample), ()) for sample in range(len(answers))]
    return list(asyncio.run(scorer.of_group(answers, TASK, views)))


def test_the_best_has_1_the_worst_0_and_what_ties_the_mean_of_its_places(endpoint: ScriptedJudge) -> None:
    assert rewards(scorer_of(endpoint), ["aa", "a", "aaaa"]) == [0.5, 0.0, 1.0]
    assert rewards(scorer_of(endpoint), ["aa", "bb", "a", "ccc"]) == [0.5, 0.5, 0.0, 1.0]
    assert rewards(scorer_of(endpoint), ["aa", "bb", "cc"]) == [0.5, 0.5, 0.5]


def test_equal_answers_are_shown_once_and_tie(endpoint: ScriptedJudge) -> None:
    assert rewards(scorer_of(endpoint), ["aa", "a", "a", "a"]) == [1.0, *[pytest.approx(1 / 3)] * 3]
    assert {len(shown(body)["answers"]) for body in endpoint.requests} == {2}
    endpoint.requests.clear()
    assert rewards(scorer_of(endpoint), ["a", "a"]) == [0.5, 0.5]
    assert rewards(scorer_of(endpoint), ["a"]) == [0.5]
    assert endpoint.requests == []


def test_a_judge_that_prefers_the_first_place_gives_all_the_same(endpoint: ScriptedJudge) -> None:
    """Measured beside one order, where chance decides who gains: no more than noise in the mean, but all of it."""
    endpoint.answer = first_is_best
    answers = ["a", "bb", "ccc", "dddd"]
    assert rewards(scorer_of(endpoint), answers) == [0.5] * 4
    single = [rewards(scorer_of(endpoint, orders=1), answers, group) for group in range(60)]
    assert all(sorted(each) == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0] for each in single)
    assert all(0.3 < fmean(each[member] for each in single) < 0.7 for member in range(4))


def test_a_preference_for_a_place_does_not_hide_what_is_better(endpoint: ScriptedJudge) -> None:
    endpoint.answer = lambda body: by_length(body, preferred=2)
    answers = ["a", "a" * 4, "a" * 7, "a" * 10]
    found = [rewards(scorer_of(endpoint), answers, group) for group in range(10)]
    assert all(each[0] < 0.5 < each[-1] for each in found)
    means = [fmean(each[member] for each in found) for member in range(4)]
    assert means == sorted(means)


def test_the_orders_are_those_of_the_seed_and_the_group(endpoint: ScriptedJudge) -> None:
    answers = [letter * 3 for letter in "abcdefgh"]

    def orders(group: int, **keys: Any) -> list[list[str]]:
        endpoint.requests.clear()
        rewards(scorer_of(endpoint, cache=None, **keys), answers, group)
        return sorted(list(shown(body)["answers"].values()) for body in endpoint.requests)

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    assert orders(0) != orders(0, seed=1)
    assert len(orders(0, orders=3)) == 3
    first, second = orders(5)
    assert first == second[::-1]


def test_where_one_order_has_no_verdict_nobody_is_rewarded(endpoint: ScriptedJudge) -> None:
    def unsure(body: dict[str, Any]) -> Reply:
        return by_length(body) if next(iter(shown(body)["answers"].values())) == "a" else ranked([1])

    endpoint.answer = unsure
    with pytest.raises(RewardError, match="and not each of 1 to 2 once"):
        rewards(scorer_of(endpoint), ["a", "bb"])


def test_an_episode_that_stands_alone_is_scored_by_the_rubric(endpoint: ScriptedJudge) -> None:
    endpoint.answer = lambda body: scored(8)
    scorer = scorer_of(endpoint)
    view = EpisodeView(EpisodeKey("eval", 0, 0, 0), ())
    assert asyncio.run(scorer("word", TASK, view)) == 0.8
    assert "Longer is better." in endpoint.requests[0]["messages"][0]["content"]
    assert is_group_reward(scorer.reward)


@pytest.mark.parametrize(
    "ranking", [[], [[1, 2]], [[1], [2], [2]], [[1], [2], [4]], [[1, 2, 3], []], [1, 2, 3], [["1"], ["2"], ["3"]], 3]
)
def test_what_does_not_hold_each_answer_once_is_no_ranking(endpoint: ScriptedJudge, ranking: Any) -> None:
    endpoint.answer = lambda body: Reply(json.dumps({"reason": "", "ranking": ranking}))
    with pytest.raises(RewardError, match="gave no verdict in 1 tries"):
        rewards(scorer_of(endpoint), ["a", "bb", "ccc"])


@given(st.permutations(range(1, 8)), st.lists(st.booleans(), min_size=7, max_size=7))
def test_ranks_share_the_places_whatever_ties(order: list[int], joined: list[bool]) -> None:
    tied: list[list[int]] = []
    for number, join in zip(order, joined, strict=True):
        if join and tied:
            tied[-1].append(number)
        else:
            tied.append([number])
    ranks = read_ranking(json.dumps({"reason": "", "ranking": tied}), 7)
    assert sum(ranks) == 28
    assert all(ranks[a - 1] < ranks[b - 1] for one, two in pairwise(tied) for a in one for b in two)
    assert fmean(rewards_of([ranks], [1] * 7)) == pytest.approx(0.5)


@given(st.integers(2, 9), st.integers(1, 5), st.data())
def test_rewards_lie_between_0_and_1_around_a_half(count: int, orders: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    ranked_ = [data.draw(st.permutations([float(rank) for rank in range(1, count + 1)])) for _ in range(orders)]
    found = rewards_of(ranked_, places)
    assert all(-1e-9 <= reward <= 1 + 1e-9 for reward in found)
    mean = sum(reward * held for reward, held in zip(found, places, strict=True)) / sum(places)
    assert mean == pytest.approx(0.5)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_every_order_holds_every_answer_and_pairs_cancel(count: int, orders: int, seed: int) -> None:
    found = orders_of(count, orders, seed, EpisodeKey("train", 3, 1, 0))
    assert len(found) == orders
    assert all(sorted(order) == list(range(count)) for order in found)
    assert all(found[index + 1] == found[index][::-1] for index in range(0, orders - 1, 2))
