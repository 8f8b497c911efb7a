"""What the group's comparison does to returns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.advantages import BatchAdvantage, BatchBaseline, GroupAdvantage

returns = st.lists(
    st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), max_size=4).map(
        lambda values: {f"call-{index}": value for index, value in enumerate(values)}
    ),
    max_size=6,
)


def group_advantage(scale="std"):
    return GroupAdvantage(GroupAdvantage.Settings(scale=scale))


def one_each(*rewards):
    return [{"call": reward} for reward in rewards]


def test_the_papers_formula():
    made = [advantage["call"] for advantage in group_advantage()(one_each(0.0, 0.0, 1.0, 3.0))]
    deviation = math.sqrt((1 + 1 + 0 + 4) / 4)
    assert made == pytest.approx([-1 / deviation, -1 / deviation, 0.0, 2 / deviation])


def test_without_scaling_it_is_the_difference_to_the_mean():
    made = group_advantage("none")(one_each(0.0, 0.0, 1.0, 3.0))
    assert [advantage["call"] for advantage in made] == [-1.0, -1.0, 0.0, 2.0]


@pytest.mark.parametrize("rewards", [[0.1] * 8, [1e-300, 0.0], [7.0], [0.0] * 3])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_without_a_difference_has_none(rewards, scale):
    assert all(advantage == {"call": 0.0} for advantage in group_advantage(scale)(one_each(*rewards)))


def test_an_episode_counts_once_however_many_turns_it_has():
    long, short = {f"call-{index}": 1.0 for index in range(9)}, {"call-0": 0.0}
    made = group_advantage()([long, short])
    assert made[0]["call-0"] == pytest.approx(1.0)
    assert made[1]["call-0"] == pytest.approx(-1.0)


def test_episodes_that_earned_nothing_stay_in_their_place():
    made = group_advantage()([{}, {"a": 1.0}, {}, {"b": 0.0}])
    assert [list(advantage) for advantage in made] == [[], ["a"], [], ["b"]]


@given(returns)
def test_episodes_average_to_zero_and_to_a_spread_of_one(group):
    made = group_advantage()(group)
    assert [list(episode) for episode in made] == [list(episode) for episode in group]
    episodes = [list(episode.values()) for episode in made if episode]
    if not any(value for episode in episodes for value in episode):
        return
    mean = sum(sum(episode) / len(episode) for episode in episodes) / len(episodes)
    square = sum(sum(value**2 for value in episode) / len(episode) for episode in episodes) / len(episodes)
    assert mean == pytest.approx(0.0, abs=1e-6)
    assert square == pytest.approx(1.0, rel=1e-6)


@given(returns, st.floats(0.1, 10), st.floats(-10, 10))
def test_neither_unit_nor_origin_of_the_reward_matters(group, unit, origin):
    moved = [{call: value * unit + origin for call, value in episode.items()} for episode in group]
    for left, right in zip(group_advantage()(group), group_advantage()(moved), strict=True):
        assert left == pytest.approx(right, abs=1e-6)


rewards = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=8)


@given(rewards)
def test_rewards_of_any_size_have_finite_advantages_on_the_right_side_of_the_mean(values):
    made = [advantage["call"] for advantage in group_advantage()(one_each(*values))]
    assert all(map(math.isfinite, made))
    assert math.fsum(made) == pytest.approx(0.0, abs=1e-6)
    if any(made):
        assert made[values.index(max(values))] > 0 > made[values.index(min(values))]


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=8), st.integers(0, 1000))
def test_advantages_do_not_depend_on_the_unit_of_rewards(values, power):
    values = [round(value, 2) for value in values]
    scaled = [math.ldexp(value, power) for value in values]
    assert group_advantage()(one_each(*values)) == group_advantage()(one_each(*scaled))


@pytest.mark.parametrize("large", [1e155, 1e200, 1e308])
def test_without_scaling_no_square_is_taken(large):
    made = [advantage["call"] for advantage in group_advantage("none")(one_each(large, 0.0))]
    assert made == [large / 2, -large / 2]


steps = st.lists(returns, max_size=4)


@given(returns)
def test_of_a_step_with_one_group_the_batch_compares_as_the_group_does(group):
    whole = group_advantage()(group)
    assert BatchAdvantage(BatchAdvantage.Settings()).of_step([group]) == [whole]
    assert BatchBaseline(group_advantage()).of_step([group]) == [whole]


@given(steps)
def test_the_batch_compares_with_the_whole_step(step):
    made = BatchAdvantage(BatchAdvantage.Settings()).of_step(step)
    assert [len(group) for group in made] == [len(group) for group in step]
    assert [episode for group in made for episode in group] == group_advantage()([e for group in step for e in group])


@given(steps, st.sampled_from(["std", "none"]))
def test_episodes_that_are_alone_are_compared_with_the_step_and_groups_in_themselves(step, scale):
    group = group_advantage(scale)
    made = BatchBaseline(group).of_step(step)
    batch = BatchAdvantage(BatchAdvantage.Settings(scale=scale)).of_step(step)
    for given_, here, there in zip(step, made, batch, strict=True):
        assert here == (there if len(given_) == 1 else group(given_))


def test_people_who_bring_a_task_each_are_told_apart_by_the_batch():
    made = BatchBaseline(group_advantage()).of_step([one_each(1.0), one_each(0.0), one_each(0.0, 1.0)])
    assert made == [one_each(1.0), one_each(-1.0), one_each(-1.0, 1.0)]
