"""Credit along the tree of conversations, whatever order calls came in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.algorithms.episodes import Recorder, wander

from agentrl.algorithms.credit import EpisodeCredit, TreeCredit


def tree_credit(discount=1.0):
    return TreeCredit(TreeCredit.Settings(discount=discount))


def record(*parents):
    """Calls whose parents are these indices; ``None`` starts a conversation."""
    made = Recorder(random.Random(0), 5)
    for parent in parents:
        made.call([1, 2], [3], after=None if parent is None else f"call-{parent}")
    return made


def test_an_episodes_reward_reaches_every_call():
    episode = record(None, 0, None, 2).episode(0.5)
    everyone = {f"call-{index}": 0.5 for index in range(4)}
    assert EpisodeCredit()(episode) == everyone
    assert tree_credit()(episode) == everyone


def test_an_episodes_reward_is_discounted_back_from_the_end_of_each_conversation():
    episode = record(None, 0, 1, None, 3).episode(8.0)
    assert tree_credit(0.5)(episode) == {"call-0": 2.0, "call-1": 4.0, "call-2": 8.0, "call-3": 4.0, "call-4": 8.0}


def test_a_calls_reward_flows_to_its_ancestors():
    episode = record(None, 0, 1).episode({"call-0": 1.0, "call-2": 4.0})
    assert tree_credit(0.5)(episode) == {"call-0": 2.0, "call-1": 2.0, "call-2": 4.0}


def test_parallel_sub_agents_do_not_share_rewards():
    interleaved = record(None, None, 0, 1, 2, 3).episode({"call-4": 1.0, "call-5": -1.0})
    earned = tree_credit(0.5)(interleaved)
    assert earned == {
        "call-0": 0.25, "call-2": 0.5, "call-4": 1.0, "call-1": -0.25, "call-3": -0.5, "call-5": -1.0
    }  # fmt: skip


def test_a_call_that_branches_earns_what_all_its_branches_earn():
    episode = record(None, 0, 0).episode({"call-1": 1.0, "call-2": 2.0})
    assert tree_credit()(episode)["call-0"] == 3.0


def test_calls_that_no_reward_reaches_are_not_trained():
    episode = record(None, 0, 1, None).episode({"call-1": 1.0})
    assert set(tree_credit()(episode)) == {"call-0", "call-1"}


def test_a_reward_of_zero_is_a_reward():
    episode = record(None, 0).episode({"call-1": 0.0})
    assert tree_credit()(episode) == {"call-0": 0.0, "call-1": 0.0}


@given(st.integers(0, 10_000))
def test_undiscounted_conversations_earn_all_there_is(seed):
    made = wander(Recorder(random.Random(seed), 5), [1], calls=8)
    episode = made.episode({call.id: made.random.random() for call in made.calls})
    earned = tree_credit()(episode)
    starts = [call.id for call in made.calls if call.parent is None]
    assert sum(earned[start] for start in starts) == pytest.approx(episode.reward)
