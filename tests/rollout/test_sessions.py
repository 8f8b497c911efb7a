"""When a step is due to sessions that people bring, and which it takes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Group
from agentrl.rollout.sessions import SessionBuffer
from agentrl.tokens.contract import ROOT, Sampled, TokenTree


def session(group, versions=(0,), reward: float | None = 1.0, sample=0):
    """A session that sampled a token of each of ``versions``; without a reward nobody came back to it."""
    tree = TokenTree()
    if versions:
        at = tree.add_given([1, 2], ROOT)
        tree.add_sampled([3] * len(versions), Sampled("call", (-1.0,) * len(versions), tuple(versions), 1.0), at)
    key = EpisodeKey("train", group, group, sample)
    if reward is None:
        return Episode(key, {}, "failed", None, tree=tree, failure=Failure("agent", "it expired"))
    return Episode(key, {}, "rewarded", reward, tree=tree)


def alone(group, versions=(0,), reward: float | None = 1.0):
    return Group(group, (session(group, versions, reward),))


def together(group, *rewards):
    return Group(group, tuple(session(group, (0,), reward, sample) for sample, reward in enumerate(rewards)))


def ordinals(groups):
    return [group.ordinal for group in groups]


def test_a_step_is_due_at_so_many_rewarded_sessions():
    buffer = SessionBuffer(3, 1, "mask")
    buffer.add(alone(4))
    buffer.add(alone(0))
    assert buffer.take() is None
    buffer.add(alone(7))
    buffer.add(alone(1))
    assert ordinals(buffer.take().groups) == [0, 4, 7], "the first to end come first, and are in the order of ordinals"
    assert buffer.sessions == 1
    assert buffer.next == 8


def test_a_group_is_taken_whole_and_counts_with_its_rewarded_sessions():
    buffer = SessionBuffer(3, 1, "mask")
    buffer.add(together(0, 1.0, None, 0.0))
    assert buffer.take() is None
    buffer.add(together(1, 1.0, 0.0))
    taken = buffer.take()
    assert ordinals(taken.groups) == [0, 1]
    assert len(taken.groups[0].episodes) == 3


def test_sessions_that_nobody_rewarded_make_no_step_and_come_with_the_next_one():
    buffer = SessionBuffer(1, 1, "mask")
    for group in range(5):
        buffer.add(alone(group, reward=None))
    assert buffer.take() is None
    buffer.add(alone(5))
    taken = buffer.take()
    assert (ordinals(taken.groups), ordinals(taken.left_out)) == ([5], [0, 1, 2, 3, 4])
    buffer.add(alone(6))
    assert buffer.take().left_out == (), "each is told of once"


def test_a_session_without_a_token_makes_no_step():
    buffer = SessionBuffer(1, 1, "mask")
    buffer.add(alone(0, versions=()))
    assert buffer.take() is None


@pytest.mark.parametrize(("on_stale", "trained", "stale"), [("drop", [2], [0, 1]), ("mask", [1, 2], [0])])
def test_what_has_become_too_old_is_dropped_or_kept_for_its_newer_tokens(on_stale, trained, stale):
    buffer = SessionBuffer(1, 2, on_stale)
    buffer.add(alone(0, versions=(0, 0)))
    buffer.add(alone(1, versions=(0, 1)))
    buffer.served(3)
    buffer.add(alone(2, versions=(1, 3)))
    first = buffer.take()
    later = buffer.take()
    assert ordinals(first.groups) + (ordinals(later.groups) if later else []) == trained
    assert ordinals(first.stale) == stale


def test_versions_do_not_fall():
    buffer = SessionBuffer(1, 2, "mask", version=3)
    with pytest.raises(ValueError, match="version 2 cannot follow version 3"):
        buffer.served(2)


@given(st.integers(1, 5), st.integers(0, 3), st.sampled_from(["mask", "drop"]), st.integers(0, 2**32))
def test_no_trained_token_is_older_than_the_bound_and_no_session_is_lost(per_step, bound, on_stale, seed):
    chance = random.Random(seed)
    buffer, added, left = SessionBuffer(per_step, bound, on_stale), [], []
    version = 0
    for ordinal in range(40):
        began = max(0, version - chance.randrange(6))
        versions = sorted(chance.randint(began, version) for _ in range(chance.randrange(1, 4)))
        buffer.add(alone(ordinal, versions, chance.choice([1.0, 0.0, None])))
        added.append(ordinal)
        while (taken := buffer.take()) is not None:
            assert sum(len(group.episodes) for group in taken.groups) == per_step
            for group in taken.groups:
                tokens = [
                    each for span in group.episodes[0].tree.spans if span.sampled for each in span.sampled.versions
                ]
                assert (min(tokens) if on_stale == "drop" else max(tokens)) >= version - bound
            left += ordinals((*taken.groups, *taken.left_out, *taken.stale))
            version += 1
            buffer.served(version)
    for ordinal in range(40, 40 + 2 * per_step):
        buffer.add(alone(ordinal, [version]))
    while (taken := buffer.take()) is not None:
        left += ordinals((*taken.groups, *taken.left_out, *taken.stale))
    assert len(set(left)) == len(left)
    assert set(left) >= set(added)
