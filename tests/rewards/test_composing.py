"""The reward ``sum``: weights, penalties and gates, each part told, and what fails excludes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.rewards.scripted_judge import Reply, ScriptedJudge, scored
from tests.rewards.test_ranked_judge import by_length

from agentrl.agents.result import parts_of
from agentrl.config.models import Config
from agentrl.errors import BudgetError, ConfigError, RewardError
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rewards.scoring import Scorer, is_group_reward
from agentrl.rollout.contract import EpisodeKey, EpisodeView

TASK = {"question": "What is 40 + 2?", "answer": "42"}
RIGHT = {"name": "numeric-match"}
MINE = '''
from agentrl import Reward


def brief(answer, data):
    """1 for one character, less for more."""
    return 1 / len(answer)


def parted(answer, data):
    return Reward(0.5, tone=0.25)


class Pairs:
    """Half the group is excluded."""

    def __call__(self, answer, data):
        return 0.0

    async def score_group(self, answers, data, *, episodes):
        from agentrl.errors import RewardError
        return [float(index) if index % 2 == 0 else RewardError("odd") for index in range(len(answers))]


class Wrong:
    def __call__(self, answer, data):
        return 0.0

    async def score_group(self, answers, data, *, episodes):
        return [] if answers[0] == "none" else [float("nan")] * len(answers)
'''


@pytest.fixture
def mine(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}"


@pytest.fixture
def endpoint() -> Iterator[ScriptedJudge]:
    with ScriptedJudge(by_length) as judge:
        yield judge


def load(reward: object) -> Callable[..., Any]:
    part = Config.model_validate({"reward": reward}).reward
    assert part is not None
    return load_reward(Plugins(), part)


def summed(**keys: Any) -> Callable[..., Any]:
    return load({"name": "sum", **keys})


def view(sample: int = 0) -> EpisodeView:
    return EpisodeView(EpisodeKey("train", 0, 0, sample), ())


def score(reward: Callable[..., Any], answer: Any) -> Any:
    return asyncio.run(call_reward(reward, answer, TASK, view()))


def group(reward: Callable[..., Any], *answers: Any) -> list[Any]:
    views = [view(sample) for sample in range(len(answers))]
    return list(asyncio.run(Scorer(reward).of_group(answers, TASK, views)))


def test_parts_add_up_by_weight_less_penalties_and_each_is_told(mine: str) -> None:
    reward = summed(
        parts={"right": "numeric-match", "exact": {"name": "exact-match", "weight": 0.5}},
        penalties={"length": {"name": f"{mine}:brief", "weight": 2}},
    )
    for answer, right, exact, length in (("42", 1, 1, 1 / 2), ("42.0", 1, 0, 1 / 4), ("7", 0, 0, 1)):
        found = score(reward, answer)
        assert found == right + 0.5 * exact - 2 * length
        assert parts_of(found) == {"right": right, "exact": exact, "length": length}
    assert not is_group_reward(reward)


def test_what_does_not_pass_a_gate_is_worth_what_the_gate_says_and_nothing_else_scores_it(
    endpoint: ScriptedJudge,
) -> None:
    endpoint.answer = lambda body: scored(10)
    reward = summed(
        gates={
            "form": {"name": "regex", "pattern": r"\d", "field": None, "otherwise": -1},
            "right": {**RIGHT, "at_least": 0.5},
        },
        parts={"style": {"name": "judge", "rubric": "Short.", "model": "wise", "url": endpoint.url}},
    )
    closed = score(reward, "no number")
    assert (closed, parts_of(closed)) == (-1, {"form": 0, "right": 0})
    assert score(reward, "41") == 0
    assert endpoint.requests == []
    passed = score(reward, "42")
    assert (passed, parts_of(passed)) == (1, {"form": 1, "right": 1, "style": 1})


def test_parts_of_parts_are_told_under_their_label(mine: str) -> None:
    inner = {"name": "sum", "parts": {"a": f"{mine}:parted"}, "weight": 3}
    found = score(summed(parts={"inner": inner, "b": f"{mine}:parted"}), "42")
    assert found == 3 * 0.5 + 0.5
    assert parts_of(found) == {"inner": 0.5, "inner.a": 0.5, "inner.a.tone": 0.25, "b": 0.5, "b.tone": 0.25}


def test_an_error_of_a_part_fails_the_answer_and_names_the_part() -> None:
    with pytest.raises(RewardError, match=r"right: the task has no field 'truth'"):
        score(summed(parts={"right": {**RIGHT, "field": "truth"}, "also": RIGHT}), "42")


def test_only_what_passes_the_gates_is_ranked(endpoint: ScriptedJudge) -> None:
    judge = {"name": "ranked-judge", "rubric": "Longer.", "model": "wise", "url": endpoint.url, "weight": 0.5}
    reward = summed(gates={"right": RIGHT}, parts={"right_too": RIGHT, "style": judge})
    assert is_group_reward(reward)
    found = group(reward, "It is 42", "41, whatever else is said", "42")
    assert found == [1.5, 0.0, 1.0]
    assert parts_of(found[0]) == {"right": 1, "right_too": 1, "style": 1}
    assert parts_of(found[1]) == {"right": 0}
    assert "41" not in str(endpoint.requests)


def test_a_part_may_exclude_one_of_a_group(mine: str) -> None:
    found = group(summed(parts={"pairs": f"{mine}:Pairs", "right": RIGHT}), "42", "42", "41")
    assert [found[0], found[2]] == [1.0, 2.0]
    assert isinstance(found[1], RewardError)
    assert "pairs: odd" in str(found[1])


def test_a_group_reward_that_returns_nonsense_is_told(mine: str) -> None:
    reward = load(f"{mine}:Wrong")
    assert all(isinstance(each, RewardError) for each in group(reward, "a", "b"))
    with pytest.raises(RewardError, match="returned 0 rewards for the 2 answers of a group"):
        group(reward, "none", "b")
    found = group(summed(parts={"w": f"{mine}:Wrong", "right": RIGHT}), "none", "42")
    assert ["w: the reward returned 0 rewards" in str(each) for each in found] == [True, True]


def test_a_spent_budget_of_a_part_stops_the_run(endpoint: ScriptedJudge) -> None:
    judge = {"name": "judge", "rubric": "Short.", "model": "wise", "url": endpoint.url, "budget": {"requests": 0}}
    with pytest.raises(BudgetError):
        score(summed(parts={"style": judge, "right": {**RIGHT, "field": "truth"}}), "42")


def test_a_failing_judge_fails_only_what_it_was_asked_about(endpoint: ScriptedJudge) -> None:
    endpoint.answer = lambda body: Reply("no") if "41" in body["messages"][1]["content"] else scored(5)
    judge = {"name": "judge", "rubric": "?", "model": "wise", "url": endpoint.url, "max_retries": 0}
    ranked = {"name": f"{__file__}:Alike"}
    found = group(summed(parts={"style": judge, "alike": ranked}), "42", "41")
    assert found[0] == 1.5
    assert "style: the judge 'wise'" in str(found[1])


class Alike:
    """Compares, so that the whole is asked of a group."""

    def __call__(self, answer: Any, data: Any) -> float:
        return 1.0

    async def score_group(self, answers: Any, data: Any, *, episodes: Any) -> list[float]:
        return [1.0 for _ in answers]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "parts is empty"),
        ({"parts": {"a": "exact-macth"}}, "did you mean 'exact-match'"),
        ({"parts": {"a": {"name": "judge", "rubrik": "x"}}}, r"'reward.parts.a.rubrik' \(did you mean 'rubric'"),
        ({"parts": {"a": {"name": "exact-match", "weight": -1}}}, "reward.parts.a.weight"),
        ({"parts": {"a": {"name": "exact-match", "weight": "much"}}}, "reward.parts.a.weight"),
        ({"parts": {"a/b": "exact-match"}}, "'a/b' is no label"),
        ({"parts": {"a": "exact-match"}, "gates": {"a": "numeric-match"}}, "'a' stands for several rewards"),
        ({"part": {"a": "exact-match"}}, "did you mean 'parts'"),
        ({"parts": {"a": "exact-match"}, "gates": {"b": {"name": "regex"}}}, "reward.gates.b.pattern is missing"),
    ],
)
def test_a_wrong_name_or_key_is_explained(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        summed(**keys)
