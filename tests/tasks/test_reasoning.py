"""Any data set of reasoning-gym, by its name, with its own keys and its own scorer."""

from __future__ import annotations

import asyncio

import pytest

from agentrl.config.models import Config, TasksSection
from agentrl.errors import ConfigError, RewardError
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.contract import EpisodeKey, EpisodeView
from agentrl.tasks import TaskSet, load_tasks

VIEW = EpisodeView(EpisodeKey("eval", 0, 0, 0), ())


def load(**keys: object) -> TaskSet:
    return load_tasks(Plugins(), TasksSection(train={"name": "reasoning-gym", **keys}).train)


def score(answer: str, task: dict[str, object]) -> float:
    reward = load_reward(Plugins(), Config(reward="reasoning-gym").reward)
    return asyncio.run(call_reward(reward, answer, task, VIEW))


def test_tasks_repeat_for_a_seed_and_obey_the_data_sets_own_keys() -> None:
    tasks = load(dataset="leg_counting", size=4, seed=3, min_animals=2, max_animals=2)
    assert [tasks[i] for i in range(4)] == list(
        load(dataset="leg_counting", size=4, seed=3, min_animals=2, max_animals=2)
    )
    assert all(task["metadata"]["num_animals"] == 2 for task in tasks)


@pytest.mark.parametrize("dataset", ["leg_counting", "countdown", "chain_sum"])
def test_the_scorer_knows_a_right_answer_from_a_wrong_one(dataset: str) -> None:
    task = load(dataset=dataset, size=1)[0]
    assert score(task["answer"], task) == 1
    assert score("never", task) < 1


def test_the_scorer_refuses_tasks_from_elsewhere() -> None:
    with pytest.raises(RewardError, match="does not come from reasoning-gym"):
        score("4", {"question": "2 + 2?", "answer": "4"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset": "leg_countin"}, "did you mean 'leg_counting'"),
        ({"dataset": "leg_counting", "min_animal": 2}, "did you mean 'min_animals'"),
        ({"dataset": "leg_counting", "min_animals": 99}, "max_animals must be >= min_animals"),
        ({}, "tasks.dataset is missing"),
    ],
)
def test_a_wrong_name_or_key_is_explained(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**keys)
