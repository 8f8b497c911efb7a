"""Which groups and episodes filters leave out, and what becomes of those."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import build, grpo
from tests.algorithms.episodes import Recorder, wandering_groups

from agentrl.algorithms.batch import build_batch, compare_step, fates_left_out, qualifies
from agentrl.algorithms.filters import entering
from agentrl.errors import ConfigError
from agentrl.rollout.contract import Group


def group(*rewards, task=0, cut=(), mistakes=None):
    """A group of one-call episodes; those whose index is in ``cut`` ended at their limit of tokens."""
    episodes = []
    for sample, reward in enumerate(rewards):
        recorder = Recorder(random.Random(sample), 9)
        recorder.call([1, 2, 3], [4, 5])
        episode = recorder.episode(reward, sample, task)
        if sample in cut:
            episode = replace(episode, calls=(replace(episode.calls[0], finish_reason="length"),))
        episodes.append(replace(episode, mistake=(mistakes or {}).get(sample)))
    return Group(task, tuple(episodes))


def fates(algorithm, *groups):
    _, account = build_batch(groups, algorithm)
    return [list(of_group) for of_group in account.fates]


def test_the_over_long_filter_leaves_out_what_was_cut_and_its_reward_still_counts():
    algorithm, made = grpo(filter="over_long"), group(0.0, 1.0, 0.0, cut=[2])
    assert fates(algorithm, made) == [["trained", "trained", "filtered"]]
    batch, _ = build_batch([made], algorithm)
    whole, _ = build_batch([made], grpo())
    assert set(batch.advantage) == set(whole.advantage[: len(batch.advantage)])
    assert batch.weight.sum() == pytest.approx(1.0)
    assert len(batch.advantage) == 4


@pytest.mark.parametrize(
    ("mistake", "turns", "kept"),
    [
        ("context overflow: 9 tokens", False, False),
        ("token limit: 9", False, False),
        ("turn limit: 4", False, True),
        ("turn limit: 4", True, False),
        ("malformed tool call: {", True, True),
        (None, True, True),
    ],
)
def test_the_limits_that_the_over_long_filter_knows(mistake, turns, kept):
    made = group(0.0, 1.0, mistakes={0: mistake})
    (found,) = fates(grpo(filter={"name": "over_long", "turns": turns}), made)
    assert found == ["trained" if kept else "filtered", "trained"]


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=4), min_size=1, max_size=4),
    st.none() | st.integers(-3, 3).map(float),
    st.none() | st.integers(-3, 3).map(float),
)
def test_reward_bounds_hold_the_mean_of_a_group(rewards, low, high):
    keys = {key: value for key, value in (("low", low), ("high", high)) if value is not None}
    if not keys or (low is not None and high is not None and low > high):
        with pytest.raises(ConfigError, match=r"algorithm\.filter"):
            grpo(filter={"name": "reward_bounds", **keys})
        return
    part = grpo(filter={"name": "reward_bounds", **keys}).filter
    groups = [group(*each, task=task) for task, each in enumerate(rewards)]
    enters = [each is not None for each in entering(part, compare_step(groups, grpo()))]
    means = [sum(each) / len(each) for each in rewards]
    assert enters == [(low is None or mean >= low) and (high is None or mean <= high) for mean in means]


def test_bounds_are_of_the_rewards_before_any_shaping():
    bounds, scale = {"name": "reward_bounds", "high": 1.0}, {"name": "scale", "factor": 9.0}
    algorithm = build({"name": "dr_grpo", "filter": bounds, "shaping": scale})
    assert fates(algorithm, group(0.0, 1.0)) == [["trained", "trained"]]


def test_what_one_of_several_leaves_out_is_out():
    algorithm = grpo(filter=["zero_variance", "over_long", {"name": "reward_bounds", "high": 0.5}])
    even, high, cut = group(0.0, 0.0), group(0.0, 1.0, 1.0, task=1), group(0.0, 1.0, task=2, cut=[0])
    assert fates(algorithm, even, high, cut) == [
        ["without_difference"] * 2, ["filtered"] * 3, ["filtered", "trained"]
    ]  # fmt: skip
    _, account = build_batch([even, high, cut], algorithm)
    assert account.counts["groups/filtered"] == 2


def test_a_group_of_which_nothing_enters_is_filtered():
    algorithm, made = grpo(filter="over_long"), group(0.0, 1.0, cut=[0, 1])
    batch, account = build_batch([made], algorithm)
    assert (account.fates, account.counts["groups/filtered"]) == ((("filtered", "filtered"),), 1.0)
    assert not len(batch.advantage)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.permutations(["zero_variance", "over_long", "bounds"]))
def test_neither_order_nor_company_of_filters_matters(seed, order):
    """A group qualifies alone exactly where it enters a step, and those that do not have the fates of a step."""
    bounds = {"name": "reward_bounds", "low": 0.2, "high": 0.7}
    chosen = [bounds if name == "bounds" else name for name in order]
    algorithm = grpo(filter=chosen)
    groups = [cut_at_random(each, random.Random(seed)) for each in wandering_groups(random.Random(seed), 6, groups=4)]
    compared = compare_step(groups, algorithm)
    enters = entering(algorithm.filter, compared)
    _, account = build_batch(groups, algorithm)
    for each, entered, of_group in zip(groups, enters, account.fates, strict=True):
        assert qualifies(each, algorithm) == (entered is not None)
        if entered is None:
            assert fates_left_out(each, algorithm) == of_group
    singly = [entering(grpo(filter=[each]).filter, compared) for each in chosen]
    for at, group_ in enumerate(compared):
        alone = [part[at] or (False,) * len(group_.episodes) for part in singly]
        together = enters[at] or (False,) * len(group_.episodes)
        assert together == tuple(map(all, zip(*alone, strict=True)))


def cut_at_random(group_, source):
    def cut(call):
        return replace(call, finish_reason=source.choice(["stop", "stop", "length"]))

    episodes = [replace(each, calls=tuple(map(cut, each.calls))) for each in group_.episodes]
    return Group(group_.task, tuple(episodes))


class OneAnswerTooFew:
    def __call__(self, groups):
        return [[True] * (len(group.episodes) - 1) for group in groups]


class OfNumPy:
    def __call__(self, groups):
        return np.array([group.tells_apart for group in groups])


def test_a_filter_of_ones_own_answers_for_every_episode():
    with pytest.raises(ValueError, match="zip"):
        build_batch([group(0.0, 1.0)], grpo(filter=f"{__file__}:OneAnswerTooFew"))
    assert fates(grpo(filter=f"{__file__}:OfNumPy"), group(0.0, 1.0), group(1.0, 1.0, task=1)) == [
        ["trained"] * 2, ["without_difference"] * 2
    ]  # fmt: skip
