"""What the group's comparison does to returns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.algorithms.advantages import (
    BatchAdvantage,
    BatchBaseline,
    GroupAdvantage,
    LeaveOneOutAdvantage,
    OneAdvantage,
)

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


def means_of(group):
    return [sum(episode.values()) / len(episode) for episode in group if episode]


@given(returns)
def test_leave_one_out_compares_an_episode_with_the_others_alone(group):
    made = LeaveOneOutAdvantage()(group)
    credited = [episode for episode in group if episode]
    values = [value for episode in credited for value in episode.values()]
    nothing = len(credited) < 2 or math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)
    for own, advantage in zip(group, made, strict=True):
        others = means_of(each for each in group if each is not own)
        for call, value in own.items():
            expected = 0.0 if nothing else value - sum(others) / len(others)
            assert advantage[call] == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=8))
def test_of_single_calls_leave_one_out_is_the_difference_to_the_mean_times_n_over_n_less_one(rewards):
    made = [advantage["call"] for advantage in LeaveOneOutAdvantage()(one_each(*rewards))]
    plain = [advantage["call"] for advantage in group_advantage("none")(one_each(*rewards))]
    assert made == pytest.approx([each * len(rewards) / (len(rewards) - 1) for each in plain])


@given(steps)
def test_with_a_groups_baseline_the_batch_scales_differences_to_the_group(step):
    """The paper's two lines: take each group's mean off, then divide by the standard deviation of the step."""
    made = BatchAdvantage(BatchAdvantage.Settings(baseline="group")).of_step(step)
    centred = []
    for group in step:
        mean = sum(means_of(group)) / max(1, len(means_of(group)))
        values = [value for episode in group for value in episode.values()]
        even = not values or math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)
        centred.append([{call: 0.0 if even else value - mean for call, value in each.items()} for each in group])
    episodes = [episode for group in centred for episode in group if episode]
    squares = [sum(value**2 for value in episode.values()) / len(episode) for episode in episodes]
    deviation = math.sqrt(sum(squares) / len(squares)) if squares else 0.0
    for group, expected in zip(made, centred, strict=True):
        for episode, of_episode in zip(group, expected, strict=True):
            scaled = {call: value / deviation if deviation else 0.0 for call, value in of_episode.items()}
            assert episode == pytest.approx(scaled, abs=1e-6)


def test_a_step_of_equal_groups_teaches_by_the_batch_and_not_by_its_groups():
    step = [one_each(1.0, 1.0), one_each(0.0, 0.0)]
    by_step, by_group = (
        BatchAdvantage(BatchAdvantage.Settings(baseline=each)).of_step(step) for each in ("step", "group")
    )
    assert by_step == [one_each(1.0, 1.0), one_each(-1.0, -1.0)]
    assert by_group == [one_each(0.0, 0.0), one_each(0.0, 0.0)]


@given(returns)
def test_imitation_compares_nothing(group):
    assert OneAdvantage()(group) == [dict.fromkeys(episode, 1.0) for episode in group]


@given(st.lists(rewards, min_size=1, max_size=4), st.sampled_from([0.1, 0.3, 1 / 3, 0.7]))
def test_a_group_without_difference_has_exactly_no_advantage_beside_others(others, reward):
    """Centred returns of other groups need not add up to 0 in floats, and zero variance is told by exact zeros."""
    batch = BatchAdvantage(BatchAdvantage.Settings(baseline="group"))
    groups = [
        one_each(reward, reward, reward),
        *(one_each(*(round(value, 1) % 1 for value in each)) for each in others),
    ]
    assert batch.of_step(groups)[0] == one_each(0.0, 0.0, 0.0)
