"""The buffer of groups: what it admits, what a step takes, and that no group crosses the bound or is forgotten."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.benchmarks.simulation import Load, Simulated, fastest, simulate
from tests.rollout.oracle import trainable

from agentrl.rollout.buffer import GroupBuffer, Taken
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.rollout.staleness import OnStale, StalenessBound


def group(ordinal: int) -> Group:
    return Group(0, (Episode(EpisodeKey("train", ordinal, 0, 0), {}, "rewarded", 0.0),))


def buffer(max_staleness: int, per_step: int, on_stale: OnStale = "wait", version: int = 0) -> GroupBuffer:
    return GroupBuffer(StalenessBound(max_staleness, per_step), on_stale, version)


def finish(groups: GroupBuffer, *ordinals: int) -> None:
    """The oldest token is of the version under which the group started."""
    for ordinal in ordinals:
        groups.finish(group(ordinal), groups.running[ordinal], qualifies=True)


def ordinals(groups: tuple[Group, ...]) -> list[int]:
    return [each.ordinal for each in groups]


def take(groups: GroupBuffer) -> Taken:
    taken = groups.take()
    assert taken is not None
    return taken


def test_at_bound_0_a_step_takes_all_that_started_and_none_starts_until_its_weights_are_served():
    groups = buffer(0, 2)
    for ordinal in (0, 1):
        groups.start(ordinal)
    assert not groups.may_start()
    finish(groups, 1)
    assert groups.take() is None
    finish(groups, 0)
    assert ordinals(take(groups).groups) == [0, 1]
    assert not groups.may_start()
    groups.served(1)
    assert groups.may_start()
    assert (groups.version, list(groups.outstanding)) == (1, [])


def test_above_0_groups_start_while_a_step_is_in_progress():
    groups = buffer(1, 2)
    for ordinal in range(4):
        groups.start(ordinal)
    finish(groups, 3, 1)
    assert ordinals(take(groups).groups) == [1, 3]
    assert groups.in_training == (1, 3)
    assert not groups.may_start()
    groups.served(1)
    groups.start(4)
    finish(groups, 4, 2)
    assert groups.take() is None, "group 0 may be trained by no later step"
    finish(groups, 0)
    assert ordinals(take(groups).groups) == [0, 2]
    assert groups.finished == (4,)


def test_a_group_whose_first_token_came_late_may_be_trained_later():
    groups = buffer(1, 1)
    for ordinal in (0, 1):
        groups.start(ordinal)
    finish(groups, 0)
    take(groups)
    groups.served(1)
    groups.start(2)
    finish(groups, 2)
    groups.finish(group(1), 1, qualifies=True)
    assert ordinals(take(groups).groups) == [1], "nothing is required yet, so that the lowest ordinal comes first"


def test_a_group_that_does_not_qualify_frees_its_slot_and_comes_with_the_step():
    groups = GroupBuffer(StalenessBound(0, 2), "wait", replaceable=2)
    for ordinal in (0, 1):
        groups.start(ordinal)
    groups.finish(group(1), 0, qualifies=False)
    groups.start(2)
    groups.finish(group(2), 0, qualifies=False)
    groups.start(3)
    finish(groups, 3, 0)
    taken = take(groups)
    assert (ordinals(taken.groups), ordinals(taken.left_out), taken.stale) == ([0, 3], [1, 2], ())
    groups.served(1)
    for ordinal in (4, 5):
        groups.start(ordinal)
    finish(groups, 4, 5)
    assert take(groups).left_out == ()


@given(st.sets(st.integers(0, 12)), st.integers(1, 3), st.integers(0, 5), st.data())
def test_of_groups_that_do_not_qualify_the_lowest_are_replaced_in_whatever_order_they_finish(
    poor: set[int], per_step: int, replaceable: int, data: st.DataObject
):
    groups = GroupBuffer(StalenessBound(0, per_step), "wait", replaceable=replaceable)
    started = 0
    while (taken := groups.take()) is None:
        while groups.may_start():
            groups.start(started)
            started += 1
        ordinal = data.draw(st.sampled_from(sorted(groups.running)))
        groups.finish(group(ordinal), 0, ordinal not in poor)
    left_out: list[int] = []
    in_order: list[int] = []
    for ordinal in itertools.count():
        if len(in_order) == per_step:
            break
        replaced = ordinal in poor and len(left_out) < replaceable
        (left_out if replaced else in_order).append(ordinal)
    assert (ordinals(taken.groups), ordinals(taken.left_out)) == (in_order, left_out)


def test_a_group_that_is_trained_after_all_takes_the_place_of_none_that_may_be_trained_later():
    groups = GroupBuffer(StalenessBound(1, 1), "wait", replaceable=1)
    for ordinal in (0, 9):
        groups.start(ordinal)
    finish(groups, 0)
    take(groups)
    groups.served(1)
    groups.start(3)
    groups.finish(group(9), 0, qualifies=False)
    groups.start(2)
    groups.finish(group(2), 1, qualifies=False)
    assert groups.finished == (2,), "group 9 would have to be trained by this step"
    taken = take(groups)
    assert (ordinals(taken.groups), ordinals(taken.left_out)) == ([2], [9])


@given(st.integers(0, 3), st.integers(1, 3), st.integers(0, 4), st.randoms(use_true_random=False))
def test_whatever_does_not_qualify_the_others_are_trained_in_time(
    max_staleness: int, per_step: int, replaceable: int, random: Random
):
    groups = GroupBuffer(StalenessBound(max_staleness, per_step), "wait", replaceable=replaceable)
    started = 0
    oldest: dict[int, int] = {}
    for _ in range(100):
        choices = [*groups.running, *(["start"] if groups.may_start() else []), "step"]
        chosen = random.choice(choices)
        if chosen == "start":
            groups.start(started)
            started += 1
        elif chosen == "step" and groups.in_training:
            groups.served(groups.version + 1)
        elif chosen == "step":
            taken = groups.take()
            assert taken is not None or groups.running or groups.may_start(), "nothing can happen any more"
            if taken is not None:
                assert not taken.stale
                assert len(taken.left_out) <= replaceable
                assert all(groups.version - oldest[each] <= max_staleness for each in ordinals(taken.groups))
        else:
            oldest[chosen] = random.randint(groups.running[chosen], groups.version)
            groups.finish(group(chosen), oldest[chosen], random.random() < 0.5)


def test_a_group_without_tokens_takes_its_place_in_the_step():
    groups = buffer(0, 2)
    for ordinal in (0, 1):
        groups.start(ordinal)
    groups.finish(group(0), None, qualifies=True)
    assert not groups.may_start()
    finish(groups, 1)
    assert ordinals(take(groups).groups) == [0, 1]


def straggling(on_stale: OnStale) -> GroupBuffer:
    """Group 0 is still running after two steps of bound 1 that did not wait for it."""
    groups = buffer(1, 1, on_stale)
    groups.start(0)
    for ordinal in (1, 2):
        groups.start(ordinal)
        finish(groups, ordinal)
        take(groups)
        groups.served(ordinal)
    return groups


def test_masking_waits_for_no_group_and_trains_one_that_is_beyond_the_bound():
    groups = straggling("mask")
    finish(groups, 0)
    taken = take(groups)
    assert (ordinals(taken.groups), taken.stale) == ([0], ())


def test_dropping_waits_for_no_group_and_trains_none_that_is_beyond_the_bound():
    groups = straggling("drop")
    groups.start(3)
    assert not groups.may_start()
    finish(groups, 0)
    assert groups.may_start(), "a group that no step can train holds no slot"
    assert groups.take() is None
    finish(groups, 3)
    taken = take(groups)
    assert (ordinals(taken.groups), ordinals(taken.stale)) == ([3], [0])
    groups.start(0)
    groups.served(3)
    finish(groups, 0)
    taken = take(groups)
    assert (ordinals(taken.groups), taken.stale) == ([0], ()), "it comes again with newer tokens"


def test_dropping_gives_up_a_finished_group_that_the_steps_have_overtaken():
    groups = buffer(2, 1, "drop")
    for ordinal in range(3):
        groups.start(ordinal)
    finish(groups, 0)
    take(groups)
    groups.served(1)
    groups.start(3)
    finish(groups, 3)
    take(groups)
    groups.served(2)
    finish(groups, 1, 2)
    assert ordinals(take(groups).groups) == [1]
    groups.served(3)
    assert list(groups.outstanding) == []


def test_groups_of_a_run_that_goes_on_keep_the_version_that_they_had():
    groups = buffer(1, 1, version=5)
    groups.start(8, oldest=4)
    groups.start(9)
    finish(groups, 9)
    assert groups.take() is None
    finish(groups, 8)
    assert ordinals(take(groups).groups) == [8]


def test_a_run_that_goes_on_with_a_lower_bound_trains_nothing_beyond_it_and_ends():
    groups = buffer(0, 1, version=5)
    for ordinal, oldest in ((7, 4), (8, 5), (9, 5)):
        groups.start(ordinal, oldest=oldest)
    assert not groups.may_start()
    finish(groups, 7, 8)
    assert groups.take() is None
    finish(groups, 9)
    taken = take(groups)
    assert (ordinals(taken.groups), ordinals(taken.stale)) == ([8], [7])
    groups.served(6)
    groups.start(10)
    finish(groups, 10)
    taken = take(groups)
    assert (ordinals(taken.groups), ordinals(taken.stale)) == ([10], [9])


Wrong = Callable[[GroupBuffer], object]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda groups: groups.start(0), "group 0 is outstanding already"),
        (lambda groups: groups.start(2), "group 2 has no slot: 2 groups are outstanding"),
        (lambda groups: groups.finish(group(2), 0, qualifies=True), "group 2 is not running"),
        (lambda groups: groups.finish(group(0), 0, qualifies=True), "group 0 is not running"),
        (lambda groups: groups.take(), "the step at version 3 is in progress"),
        (lambda groups: groups.served(2), "version 2 cannot follow version 3"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(call: Wrong, message: str):
    groups = buffer(1, 1, version=3)
    for ordinal in (0, 1):
        groups.start(ordinal)
    finish(groups, 0)
    take(groups)
    with pytest.raises(ValueError, match=message):
        call(groups)


@dataclass
class Reached:
    """A buffer, and what has been done with it."""

    groups: GroupBuffer
    oldest: dict[int, int] = field(default_factory=dict)
    """Of every group: the version of its oldest token, or what it reserves for it while it runs."""

    def seen_as(self) -> tuple[object, ...]:
        """All that its future depends on, with versions relative to the one that is served."""
        groups = self.groups
        each = [(ordinal in groups.running, self.oldest[ordinal] - groups.version) for ordinal in self.waiting()]
        return (len(groups.in_training), *each)

    def waiting(self) -> list[int]:
        """Ordinals of the groups that are to be trained by a later step."""
        return sorted(set(self.groups.outstanding) - set(self.groups.in_training))

    def following(self) -> Iterator[Reached]:
        """Whatever can happen next: a start, a group that finishes with a first token of any possible age, a step."""
        if self.groups.may_start():
            after = copy.deepcopy(self)
            ordinal = max(after.oldest, default=-1) + 1
            after.groups.start(ordinal)
            after.oldest[ordinal] = after.groups.version
            yield after
        for ordinal, reserved in self.groups.running.items():
            for oldest in range(reserved, self.groups.version + 1):
                after = copy.deepcopy(self)
                after.groups.finish(group(ordinal), oldest, qualifies=True)
                after.oldest[ordinal] = oldest
                yield after
        after = copy.deepcopy(self)
        if after.groups.in_training:
            after.groups.served(after.groups.version + 1)
            yield after
        elif after.groups.take() is not None:
            yield after


def reachable(bound: StalenessBound) -> list[Reached]:
    """Every state that any order of starts, completions and steps leads to."""
    first = Reached(GroupBuffer(bound, "wait"))
    found, edge = {first.seen_as(): first}, [first]
    while edge:
        for after in edge.pop().following():
            if after.seen_as() not in found:
                found[after.seen_as()] = after
                edge.append(after)
    return list(found.values())


@pytest.mark.parametrize(("max_staleness", "per_step"), [(0, 1), (0, 3), (1, 1), (1, 2), (2, 1), (3, 1)])
def test_whatever_happens_all_groups_can_be_trained_in_time_and_nothing_that_leaves_it_so_is_refused(
    max_staleness, per_step
):
    bound = StalenessBound(max_staleness, per_step)
    states = reachable(bound)
    assert len(states) > 2 * bound.slots
    for each in states:
        groups, oldest, waiting = each.groups, each.oldest, each.waiting()
        following = groups.version + bool(groups.in_training)
        assert trainable(bound, following, [oldest[ordinal] for ordinal in waiting])
        one_more = [*(oldest[ordinal] for ordinal in waiting), groups.version]
        assert groups.may_start() == trainable(bound, following, one_more)
        if groups.in_training:
            continue
        good = [
            step
            for step in itertools.combinations(groups.finished, per_step)
            if trainable(bound, groups.version + 1, [oldest[ordinal] for ordinal in waiting if ordinal not in step])
        ]
        taken = copy.deepcopy(groups).take()
        assert tuple(ordinals(taken.groups)) in good if taken is not None else not good
        assert taken is not None or groups.running or groups.may_start(), "nothing can happen any more"


@st.composite
def loads(draw: st.DrawFn) -> Load:
    """A run of random episodes: many short ones and some that last many steps."""
    bound = StalenessBound(draw(st.sampled_from([0, 1, 2, 4])), draw(st.integers(1, 4)))
    size, steps = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    seconds = random.lognormal(0, draw(st.sampled_from([0.0, 0.5, 1.5, 3.0])), (bound.per_step * steps, size))
    learner = random.exponential(draw(st.sampled_from([0.0, 0.3, 3.0])), steps)
    workers = draw(st.integers(1, 40))
    return Load(bound, size, workers, seconds, list(learner), draw(st.sampled_from(["wait", "mask", "drop"])))


def trained(run: Simulated) -> list[int]:
    return [each.ordinal for step in run.steps for each in step.groups]


@settings(max_examples=300)
@given(loads())
def test_a_run_of_any_episodes_ends_and_trains_every_group_that_it_starts_within_the_bound(load: Load):
    slots = load.bound.slots

    def watch(groups: GroupBuffer) -> None:
        assert len(groups.outstanding) <= slots

    run = simulate(load, watch)
    assert [len(step.groups) for step in run.steps] == [load.bound.per_step] * len(load.learner)
    dropped = [each.ordinal for step in run.steps for each in step.stale]
    if load.on_stale == "drop":
        assert len(run.started) - len(trained(run)) - len(dropped) <= slots
    else:
        assert not dropped
        assert sorted(run.started) == sorted(trained(run))
    if load.on_stale != "mask":
        assert max(run.staleness) <= load.bound.max_staleness
    if load.bound.max_staleness == 0:
        assert trained(run) == sorted(run.started)


@given(loads())
def test_with_a_worker_for_every_episode_no_schedule_in_the_order_of_the_tasks_is_faster(load: Load):
    enough = load.bound.slots * load.group_size
    run = simulate(Load(load.bound, load.group_size, enough, load.seconds, load.learner))
    assert run.seconds == pytest.approx(fastest(load))
