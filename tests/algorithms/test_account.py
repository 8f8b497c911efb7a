"""The account of a batch: every sampled token has one fate, and every loss term is found again at its token."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder, wandering_groups

from agentrl.algorithms.account import TOKEN_FATES
from agentrl.algorithms.batch import build_batch
from agentrl.rollout.contract import Failure, Group
from agentrl.tokens.contract import TokenTree

GRPO = grpo()


def sampled(episode):
    return [span for span in episode.tree.spans if span.sampled is not None]


def by_episode(account, values):
    """``values`` of all sampled tokens, episode by episode."""
    ends = np.cumsum(account.tokens.lengths)
    assert len(values) == (ends[-1] if len(ends) else 0)
    return [values[end - length : end].tolist() for end, length in zip(ends, account.tokens.lengths, strict=True)]


def laid_out(account, values):
    return by_episode(account, account.tokens.laid_out(values))


def fates_of(account):
    return [[TOKEN_FATES[code] for code in codes] for codes in by_episode(account, account.tokens.fates)]


def some_greedy(episode, rng):
    """The episode, a fifth of whose completions no policy alone has drawn."""
    tree = TokenTree()
    for span in episode.tree.spans:
        drawn = span.sampled
        if drawn is not None and rng.random() < 0.2:
            drawn = replace(drawn, temperature=0.0) if rng.random() < 0.5 else replace(drawn, constrained=True)
        tree._add(replace(span, sampled=drawn))
    return replace(episode, tree=tree)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), oldest=st.sampled_from([None, 1, 3]), updates=st.integers(1, 3), data=st.data())
def test_terms_and_fates_lie_at_the_tokens_of_the_trees(seed, oldest, updates, data):
    rng = random.Random(seed)
    groups = [
        replace(group, episodes=tuple(some_greedy(episode, rng) for episode in group.episodes))
        for group in wandering_groups(rng, 50, groups=3, newest=4)
    ]
    algorithm = grpo(filter="zero_variance") if data.draw(st.booleans()) else GRPO
    longest = data.draw(st.sampled_from([None, 12]))
    batch, account = build_batch(groups, algorithm, oldest=oldest, longest=longest, updates=updates)
    episodes = [episode for group in groups for episode in group.episodes]
    columns = {
        "logprobs": laid_out(account, batch.logprob),
        "versions": laid_out(account, batch.version.astype(float)),
        "ids": laid_out(account, batch.targets.token.astype(float)),
    }
    of_episode = [fate for fates in account.fates for fate in fates]
    assert list(map(len, fates_of(account))) == [sum(len(span.ids) for span in sampled(e)) for e in episodes]
    for number, (episode, fates) in enumerate(zip(episodes, fates_of(account), strict=True)):
        trained = [fate == "trained" for fate in fates]
        told = {
            "logprobs": [value for span in sampled(episode) for value in span.sampled.logprobs],
            "versions": [value for span in sampled(episode) for value in span.sampled.versions],
            "ids": [value for span in sampled(episode) for value in span.ids],
        }
        for name, values in told.items():
            expected = [value if term else np.nan for value, term in zip(values, trained, strict=True)]
            np.testing.assert_array_equal(columns[name][number], expected)
        is_out = of_episode[number] in ("rejected", "over_long", "filtered")
        if is_out or (of_episode[number] == "without_difference" and algorithm is not GRPO):
            assert set(fates) <= {"left_out"}
        else:
            assert "left_out" not in fates
        if oldest is not None:
            young = [version >= oldest for version in told["versions"]]
            assert all(young[n] is (fate == "trained") for n, fate in enumerate(fates) if fate in ("trained", "stale"))
    counted = {fate: sum(fates.count(fate) for fates in fates_of(account)) for fate in TOKEN_FATES}
    assert counted["trained"] == len(batch.version)
    assert counted["constrained"] == account.counts["tokens/excluded"]
    assert counted["stale"] == account.counts["tokens/stale"]


@pytest.mark.parametrize(
    ("delivered", "rewards", "expected"),
    [
        (True, {"call-0": 1.0}, ["trained"] * 2 + ["unrewarded"] * 3),
        (True, 1.0, ["trained"] * 5),
        (False, 1.0, ["trained"] * 2 + ["unrewarded"] * 3),
    ],
)
def test_a_token_that_no_reward_reaches_is_told(delivered, rewards, expected):
    """A call beside another is worth nothing to it, and an answer that was never there earns nothing."""
    made = Recorder(random.Random(0), 50)
    made.call([1, 2], 2)
    made.call([3], 3)
    episode = made.episode(rewards)
    calls = (episode.calls[0], replace(episode.calls[1], delivered=delivered))
    _, account = build_batch([Group(0, (replace(episode, calls=calls),))], GRPO)
    assert fates_of(account) == [expected]


def test_what_is_not_in_the_batch_keeps_its_tokens_in_the_account():
    made = Recorder(random.Random(0), 50)
    made.call([1, 2], 2)
    failed = replace(made.episode(1.0, sample=1), outcome="failed", reward=None, failure=Failure("agent", "broke"))
    group = Group(0, (made.episode(1.0), failed, replace(made.episode(None, sample=2), tree=TokenTree(), calls=())))
    batch, account = build_batch([group], GRPO)
    assert fates_of(account) == [["trained"] * 2, ["left_out"] * 2, []]
    assert laid_out(account, batch.weight)[0] == [0.5, 0.5]
    nothing, empty = build_batch([], GRPO)
    assert laid_out(empty, nothing.weight) == [] == fates_of(empty)
