"""Asking a reward: it gets what its signature takes, and what it returns is a finite number or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.agents.numbers_and_others import REFUSED

from agentrl.agents.result import Reward, parts_of
from agentrl.config.models import Config
from agentrl.errors import ConfigError, RewardError
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.contract import EpisodeKey, EpisodeView

VIEW = EpisodeView(EpisodeKey("train", 1, 2, 3), ())
DATA = {"answer": "4"}


def ask(reward: Callable[..., Any], answer: object = "4") -> float:
    return asyncio.run(call_reward(reward, answer, DATA, VIEW))


async def slow(answer: str, data: dict[str, str]) -> bool:
    await asyncio.sleep(0)
    return answer == data["answer"]


@pytest.mark.parametrize(
    "reward",
    [
        lambda answer: answer == "4",
        lambda answer, data: answer == data["answer"],
        lambda answer, *, episode: episode is VIEW,
        lambda answer, data, *, episode: data is DATA and episode is VIEW,
        lambda answer, **given: given == {"data": DATA, "episode": VIEW},
        lambda data: data == "4",
        slow,
    ],
)
def test_a_reward_is_given_what_its_signature_takes(reward: Callable[..., Any]) -> None:
    assert ask(reward) == 1.0


@pytest.mark.parametrize(
    "value", [1, True, 1.0, np.float32(1), np.bool_(True), np.array(1.0), torch.tensor(1.0), Fraction(1), Decimal(1)]
)
def test_any_real_number_is_a_reward(value: object) -> None:
    reward = ask(lambda answer: value)
    assert reward == 1.0
    assert type(reward) is float


@pytest.mark.parametrize("value", [*REFUSED.values(), None, {}], ids=[*REFUSED, "nothing", "a dict"])
def test_anything_else_is_refused_by_value(value: object) -> None:
    with pytest.raises(RewardError, match="the reward returned "):
        ask(lambda answer: value)


def test_the_parts_of_a_reward_come_with_it() -> None:
    reward = ask(lambda answer: Reward(Decimal("0.5"), format=True))
    assert (reward, parts_of(reward)) == (0.5, {"format": 1.0})


def test_a_part_that_is_no_number_is_the_rewards_error() -> None:
    with pytest.raises(RewardError, match="part 'format' of a reward is a finite number, not nan"):
        ask(lambda answer: Reward(0.5, format=float("nan")))


def test_what_a_reward_raises_is_attributed_to_it_with_its_cause() -> None:
    said = r"ZeroDivisionError for the answer '4': division by zero at .*test_scoring\.py:\d+, in "
    with pytest.raises(RewardError, match=said) as caught:
        ask(lambda answer: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def load(tmp_path: Path, source: str, **keys: object) -> Callable[..., Any]:
    path = tmp_path / "my_rewards.py"
    path.write_text(source)
    part = Config(reward={"name": f"{path}:mine", **keys}).reward
    assert part is not None
    return load_reward(Plugins(), part)


def test_a_function_is_given_its_keys_from_the_config(tmp_path: Path) -> None:
    reward = load(tmp_path, "def mine(answer, data, weight: float = 1): return weight * (answer == '4')", weight=0.5)
    assert ask(reward) == 0.5


def test_a_class_is_built_once_and_called_for_each_answer(tmp_path: Path) -> None:
    source = "class mine:\n    def __init__(self, right): self.right = right\n"
    source += "    def __call__(self, answer): return answer == self.right\n"
    reward = load(tmp_path, source, right="4")
    assert (ask(reward), ask(reward, "5")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def mine(answer, task): return 1", "mine.task is missing|reward.task is missing"),
        ("def mine(): return 1", "cannot be called"),
        ("mine = 3", "is a int, not a function"),
    ],
)
def test_what_could_never_be_asked_is_refused_before_the_run(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, source)
