"""What broke around an episode leaves no trace in its group: the step is that in which it had never been started."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import build
from tests.algorithms.episodes import wandering_groups

from agentrl.algorithms.advantages import BatchBaseline
from agentrl.algorithms.batch import build_batch, compare_step
from agentrl.plugins import Plugins
from agentrl.rollout.contract import Failure, Group

PLUGINS = Plugins()
PRESETS = sorted(entry.qualified for entry in PLUGINS.entries("algorithms"))
NEEDED = {
    "agentrl-core/distill": {"advantage": {"model": "x"}},
    "filter.reward_bounds": {"high": 0.6},
    "normalisation.constant": {"length": 7},
    "shaping.clip": {"high": 0.7},
    "shaping.over_long": {"longest": 9, "margin": 6},
    "shaping.scale": {"factor": 2.0},
}
"""Keys without which a preset or a part cannot be built, or does nothing here."""


OF_PRESETS = ("advantage.gae", "advantage.one", "advantage.teacher")
"""Advantages that go with parts of their own alone; their presets bring those."""


def parts(slot):
    names = sorted(entry.name for entry in PLUGINS.entries("parts") if entry.name.startswith(f"{slot}."))
    return [{"name": name, **NEEDED.get(name, {})} for name in names]


ALGORITHMS = [
    *({"name": preset, **NEEDED.get(preset, {})} for preset in PRESETS),
    *({"name": "grpo", slot: part} for slot in ("credit", "normalisation", "filter") for part in parts(slot)),
    *({"name": "dr_grpo", "shaping": part} for part in parts("shaping")),
    *({"name": "grpo", "advantage": part} for part in parts("advantage") if part["name"] not in OF_PRESETS),
    {"name": "grpo", "filter": [{"name": "filter.over_long"}, {"name": "filter.zero_variance"}]},
]


def broken(episode):
    return replace(episode, outcome="failed", reward=None, call_rewards={}, failure=Failure("worker", "it was killed"))


def without(groups, gone):
    """The groups as they were had the episodes of ``gone`` never been started; a group of none is no group."""
    kept = [
        Group(group.task, tuple(episode for episode in group.episodes if episode.key not in gone)) for group in groups
    ]
    return [group for group in kept if group.episodes]


def bits(batch):
    """Every column of the batch, to the bit."""
    columns = [getattr(batch, field.name) for field in fields(batch) if field.name not in ("targets", "extra")]
    columns += [getattr(batch.targets, field.name) for field in fields(batch.targets)]
    return [
        [row.tobytes() for row in column]
        if isinstance(column, tuple) and column and isinstance(column[0], np.ndarray)
        else column.tobytes()
        if isinstance(column, np.ndarray)
        else column
        for column in columns
    ]


@pytest.mark.parametrize("alone", [False, True], ids=["groups", "some without a group"])
@pytest.mark.parametrize("chosen", ALGORITHMS, ids=str)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_step_with_failures_is_the_step_without_those_episodes(chosen, alone, seed, data):
    """Advantages, and the weights too: a mean over the step is one over the episodes that did not break."""
    algorithm = build(chosen)
    if alone:
        algorithm = replace(algorithm, advantage=BatchBaseline(algorithm.advantage))
    groups = wandering_groups(random.Random(seed), 6, groups=3, size=4)
    keys = [episode.key for group in groups for episode in group.episodes]
    gone = data.draw(st.sets(st.sampled_from(keys)))
    failing = [
        Group(group.task, tuple(broken(each) if each.key in gone else each for each in group.episodes))
        for group in groups
    ]
    never = without(groups, gone)
    found, known = ([each.advantages for each in compare_step(those, algorithm)] for those in (failing, never))
    assert [each for each in found if each] == [each for each in known if each]
    (batch, account), (expected, expected_account) = (build_batch(those, algorithm) for those in (failing, never))
    assert bits(batch) == bits(expected)
    fates = [fate for of_group in account.fates for fate in of_group if fate != "failed"]
    assert fates == [fate for of_group in expected_account.fates for fate in of_group]
    assert account.counts["tokens/excluded"] == expected_account.counts["tokens/excluded"]


def test_a_failure_that_voted_would_be_seen():
    """The property can fail: a failed episode that counts as a reward of 0 moves the others' baseline."""
    (group,) = wandering_groups(random.Random(5), 6, groups=1, size=4)
    algorithm = build({"name": "grpo"})
    gone = next(episode for episode in group.episodes if episode.outcome == "rewarded")
    at_zero = [replace(each, reward=0.0, call_rewards={}) if each is gone else each for each in group.episodes]
    voting = Group(group.task, tuple(at_zero))
    assert bits(build_batch([voting], algorithm)[0]) != bits(build_batch(without([group], {gone.key}), algorithm)[0])
