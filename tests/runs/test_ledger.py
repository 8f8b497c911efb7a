"""The ledger: every episode of a step has one fate, and the fates sum to what was received."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import wandering_groups

from agentrl.algorithms.batch import build_batch, fates_left_out
from agentrl.algorithms.contract import TokenAdvantage
from agentrl.plugins import Plugins
from agentrl.rollout.contract import Failure, Group
from agentrl.runs.ledger import Ledger, step_ledger
from agentrl.tokens.contract import TokenTree

PRESETS = sorted(entry.qualified for entry in Plugins().entries("algorithms"))
NEEDED = {"agentrl-core/distill": {"advantage": {"model": "x"}}}
"""Keys without which a preset cannot be built."""
FILTERS = ("none", "zero_variance", "over_long", ("over_long", "reward_bounds"))


def changed(draw, episode):
    """The episode with another end: failed, without calls, of older tokens, constrained, or as it was."""
    end = draw(st.sampled_from(["", "", "failed", "empty", "even", "constrained", "greedy"]))
    if end == "failed":
        side = draw(st.sampled_from(["agent", "backend", "worker"]))
        return replace(episode, outcome="failed", reward=None, call_rewards={}, failure=Failure(side, "broke"))
    if end == "empty":
        return replace(episode, calls=(), tree=TokenTree(), call_rewards={})
    if end == "even" and episode.outcome == "rewarded":
        return replace(episode, reward=0.5, call_rewards={})
    return replace(episode, tree=retold(episode.tree, draw, end))


def retold(tree, draw, end):
    made = TokenTree()
    for span in tree.spans:
        sampled = span.sampled
        if sampled is not None:
            versions = tuple(draw(st.integers(0, 3)) for _ in span.ids)
            sampled = replace(sampled, versions=versions, constrained=end == "constrained")
            sampled = replace(sampled, temperature=0.0 if end == "greedy" else sampled.temperature)
        made._add(replace(span, sampled=sampled))
    return made


@st.composite
def steps(draw):
    made = wandering_groups(random.Random(draw(st.integers(0, 10_000))), 6, groups=4, size=3)
    groups = [Group(group.task, tuple(changed(draw, each) for each in group.episodes)) for group in made]
    cuts = sorted(draw(st.lists(st.integers(0, 4), min_size=2, max_size=2)))
    return groups[: cuts[0]], groups[cuts[0] : cuts[1]], groups[cuts[1] :]


def applies(filters, preset):
    """Whether the preset takes them: from a group of equals, those learn that compare with more than the group."""
    return not preset.endswith(("reinforce++", "ppo", "distill")) or "zero_variance" not in filters


@cache
def built(preset, filters):
    bounds = {"name": "reward_bounds", "low": 0.2, "high": 0.6}
    named = [
        bounds if each == "reward_bounds" else each for each in (filters if isinstance(filters, tuple) else [filters])
    ]
    return build({"name": preset, "filter": named, **NEEDED.get(preset, {})})


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=20)
@given(step=steps(), bounds=st.tuples(*[st.none() | st.integers(0, 4), st.none() | st.integers(2, 20)]), data=st.data())
def test_every_episode_has_the_fate_that_its_loss_terms_show(preset, step, bounds, data):
    groups, left_out, stale = step
    oldest, longest = bounds
    algorithm = built(preset, data.draw(st.sampled_from([each for each in FILTERS if applies(each, preset)])))
    batch, account = build_batch(groups, algorithm, oldest=oldest, longest=longest)
    replaced = [(group, fates_left_out(group, algorithm)) for group in left_out]
    ledger = step_ledger(groups, account.fates, left_out=replaced, stale=stale)
    assert ledger.received == sum(map(ledger.count, ledger.fates)) == 12

    everything = isinstance(algorithm.advantage, TokenAdvantage)
    learned = {batch.labels[path] for path in batch.targets.path[everything | (batch.advantage != 0)]}
    fates = [
        (episode, fate)
        for group, fates in zip(groups, account.fates, strict=True)
        for episode, fate in zip(group.episodes, fates, strict=True)
    ]
    for episode, fate in fates:
        assert (f"episode {episode.key}" in learned) == (fate == "trained")
        assert (fate in ("failed", "rejected")) == (episode.outcome != "rewarded")
        if fate == "filtered":
            assert algorithm.filter
        if fate == "over_long":
            assert episode.tree.longest_path() > longest
        if fate == "stale":
            versions = [version for span in episode.tree.spans if span.sampled for version in span.sampled.versions]
            assert min(versions) < oldest
    if oldest is not None:
        assert not np_any_below(batch.version, oldest)
    if longest is not None:
        assert max(map(len, batch.paths), default=0) <= longest
    assert Ledger.of_metrics(ledger.metrics()) == ledger_of_all(ledger)
    assert Ledger.from_json(ledger.to_json()) == ledger_of_all(ledger)


def np_any_below(versions, oldest):
    return bool((versions < oldest).any())


def ledger_of_all(ledger):
    """``ledger`` with the fates that nobody met written out."""
    return Ledger(ledger.received, {fate: ledger.count(fate) for fate in Ledger.from_json({}).fates}, ledger.failed_by)


def test_an_episode_that_was_lost_is_an_error():
    with pytest.raises(RuntimeError, match="2 episodes were received, and the fates of 1 are known"):
        Ledger(2, {"trained": 1})
    with pytest.raises(RuntimeError, match="1 episodes failed, and 0 did so by some side"):
        Ledger(1, {"failed": 1})
    groups = wandering_groups(random.Random(0), 6)
    with pytest.raises(RuntimeError, match="the fates of 3 episodes are told, and the groups hold 6"):
        step_ledger(groups, [("trained",) * 3])


def test_what_a_run_started_and_no_step_took_is_unfinished():
    step = Ledger(8, {"trained": 5, "failed": 3}, {"agent": 2, "reward": 1})
    ended = (step + step).ended(20)
    assert ended.to_json() == {
        **dict.fromkeys(Counter(Ledger.from_json({}).fates), 0),
        "received": 20,
        "trained": 10,
        "failed": 6,
        "unfinished": 4,
        "failed_by": {"agent": 4, "reward": 2},
    }
    assert str(ended) == "20 episodes: 10 trained, 6 failed (4 agent, 2 reward), 4 unfinished"
    with pytest.raises(RuntimeError):
        step.ended(7)
