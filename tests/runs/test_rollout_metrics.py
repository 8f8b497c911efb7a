"""What a batch was like, whatever numbers its rewards are."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.runs.tally import mean, rollout_metrics

finite = st.floats(allow_nan=False, allow_infinity=False)


def group(*episodes: tuple[float, dict[str, float]]) -> Group:
    return Group(
        0,
        tuple(
            Episode(EpisodeKey("train", 1, 0, index), {}, "rewarded", reward, reward_parts=parts)
            for index, (reward, parts) in enumerate(episodes)
        ),
    )


@given(st.lists(finite, min_size=1, max_size=9))
def test_the_mean_of_finite_numbers_is_one_between_them(values):
    assert min(values) <= mean(values) <= max(values)


@given(st.lists(finite, min_size=1, max_size=9))
def test_metrics_of_finite_rewards_are_finite(rewards):
    metrics = rollout_metrics([group(*((reward, {}) for reward in rewards))])
    assert math.isfinite(metrics["reward/mean"])
    assert math.isfinite(metrics["reward/std"])


def test_each_part_has_its_mean_over_the_episodes_that_have_it():
    metrics = rollout_metrics([group((1.0, {"format": 1.0, "correct": 0.0}), (0.5, {"format": 0.5}), (0.0, {}))])
    parts = {name: value for name, value in metrics.items() if name.startswith("reward/parts/")}
    assert parts == {"reward/parts/format": 0.75, "reward/parts/correct": 0.0}
