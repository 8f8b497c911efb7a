"""A completion that its agent never had trains only where later history holds it, and takes nothing from the others."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder

from agentrl.algorithms.batch import build_batch
from agentrl.rollout.contract import Group

CREDITS = [{"name": "tree", "discount": 0.5}, "tree", "episode"]
SHAPES = {
    "the last of a conversation": ((None, 0, 1), {2}),
    "a sample beside one that was used": ((None, 0, 0, 2), {1}),
    "a conversation of its own": ((None, 0, None), {2}),
    "lost twice": ((None, 0, 0, 0, 3), {1, 2}),
}


def episode(parents, reward=1.0):
    """Calls whose parents are these indices."""
    made = Recorder(random.Random(0), 50)
    for parent in parents:
        made.call(made.ids(2), 3, after=None if parent is None else f"call-{parent}")
    return made.episode(reward)


def undelivered(whole, indices):
    return replace(
        whole, calls=tuple(replace(call, delivered=index not in indices) for index, call in enumerate(whole.calls))
    )


def terms(credit, whole):
    """The loss terms of an episode beside another that earned nothing."""
    batch, _ = build_batch([Group(0, (whole, episode((None,), 0.0)))], grpo(credit=credit))
    targets = (batch.targets.path, batch.targets.depth, batch.targets.token, batch.targets.temperature)
    return *targets, batch.logprob, batch.version, batch.advantage, batch.weight, batch.call


def equal(one, other):
    return all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize("credit", CREDITS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_agent_never_had_earns_nothing_and_is_nobodys_turn(credit, shape):
    parents, indices = SHAPES[shape]
    whole = episode(parents)
    without = replace(whole, calls=tuple(call for n, call in enumerate(whole.calls) if n not in indices))
    assert equal(terms(credit, undelivered(whole, indices)), terms(credit, without))
    assert not equal(terms(credit, undelivered(whole, indices)), terms(credit, whole))


@pytest.mark.parametrize("credit", CREDITS, ids=str)
def test_what_later_history_holds_trains_as_if_it_had_been_delivered(credit):
    whole = episode((None, 0, 1))
    assert equal(terms(credit, undelivered(whole, {0, 1})), terms(credit, whole))


def test_what_the_agent_rewards_by_its_id_it_has_had():
    whole = episode((None, 0), {"call-1": 1.0})
    assert equal(terms("tree", undelivered(whole, {1})), terms("tree", whole))
