"""The rewards that are trained on, made of those that episodes were given."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import Recorder, chain

from agentrl.algorithms.batch import compare
from agentrl.algorithms.shaping import ClipShaping, OverLongShaping, ScaleShaping
from agentrl.errors import ConfigError
from agentrl.rollout.contract import Group


def episode(lengths, reward):
    """An episode whose calls sampled these many tokens; ``reward`` is one for all, or one a call."""
    recorder, last = Recorder(random.Random(0), 9), None
    for length in lengths:
        last = recorder.call([1, 2], length, after=last)
    by_call = (
        {call.id: each for call, each in zip(recorder.calls, reward, strict=True)}
        if isinstance(reward, list)
        else reward
    )
    return recorder.episode(by_call)


def punished(length, longest, cache):
    """The paper's equation, as it is written."""
    if length <= longest - cache:
        return 0.0
    return ((longest - cache) - length) / cache if length <= longest else -1.0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 40), st.integers(1, 40), st.floats(-2, 2))
def test_long_answers_are_punished_as_the_paper_has_it(lengths, longest, margin, reward):
    margin = min(margin, longest)
    shaping = OverLongShaping(OverLongShaping.Settings(longest=longest, margin=margin, penalty=0.5))
    expected = reward + 0.5 * punished(sum(lengths), longest, margin)
    assert shaping(episode(lengths, reward)).reward == pytest.approx(expected)
    rewards = [reward / len(lengths)] * len(lengths)
    by_call = shaping(episode(lengths, rewards))
    assert by_call.reward == pytest.approx(expected)
    assert len({round(each, 9) for each in by_call.call_rewards.values()}) == 1


@given(st.floats(-10, 10), st.floats(0.01, 100))
def test_scale(reward, factor):
    shaping = ScaleShaping(ScaleShaping.Settings(factor=factor))
    assert shaping(episode([2], reward)).reward == pytest.approx(reward * factor)
    shaped = shaping(episode([2, 2], [reward, 1.0]))
    assert list(shaped.call_rewards.values()) == pytest.approx([reward * factor, factor])
    assert shaped.reward == pytest.approx(reward * factor + factor)


@given(st.floats(-10, 10), st.none() | st.floats(-5, 0), st.none() | st.floats(0.1, 5))
def test_clip(reward, low, high):
    if low is None and high is None:
        return
    shaping = ClipShaping(ClipShaping.Settings(low=low, high=high))
    expected = min(max(reward, -99.0 if low is None else low), 99.0 if high is None else high)
    assert shaping(episode([2], reward)).reward == expected
    assert list(shaping(episode([2, 2], [reward, 0.05])).call_rewards.values()) == [expected, 0.05]


@pytest.mark.parametrize(
    ("shaping", "message"),
    [
        ({"name": "clip"}, "set one of them"),
        ({"name": "clip", "low": 1, "high": 1}, "all rewards become equal"),
        ({"name": "over_long", "longest": 3, "margin": 4}, "margin=4 is above longest=3"),
        ({"name": "over_long"}, "algorithm.shaping.longest"),
        ({"name": "scale", "factor": 0}, "algorithm.shaping.factor"),
    ],
)
def test_bounds_without_sense_are_refused(shaping, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "dr_grpo", "shaping": [shaping]})


def test_shapings_follow_each_other_and_precede_credit():
    prompt = [1, 2]
    episodes = [chain(Recorder(random.Random(n), 9), prompt, turns=2).episode(float(n), n) for n in range(3)]
    group = Group(0, tuple(episodes))
    scaled = {"name": "scale", "factor": 10.0}
    first, last = ([scaled, {"name": "clip", "high": 1.5}], [{"name": "clip", "high": 1.5}, scaled])
    for shaping, expected in ((first, [0.0, 1.5, 1.5]), (last, [0.0, 10.0, 15.0])):
        compared = compare(group, build({"name": "dr_grpo", "shaping": shaping}))
        assert [set(by_call.values()) for by_call in compared.returns] == [{each} for each in expected]
        assert [each.reward for each in compared.episodes] == [0.0, 1.0, 2.0]
