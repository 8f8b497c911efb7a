"""Groups roll out within the bound, each step gets its groups, and what stops the rollout reaches the loop."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rollout.dispatching import dispatcher_of, in_time

from agentrl import Trainer
from agentrl.config import load_config
from agentrl.errors import RunError
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.buffer import GroupBuffer
from agentrl.rollout.staleness import StalenessBound
from agentrl.training.stopwatch import Stopwatch
from agentrl.training.supply import GroupSupply
from agentrl.training.task_order import TaskOrder

PER_STEP, GROUP = 3, 2


async def sleeps(data):
    await asyncio.sleep(data["seconds"])
    return 1.0


def supply_of(*overrides, agent=sleeps, seconds=(0.0,), qualifies=None, concurrency=64, steps=4, buffer=GroupBuffer):
    """A supply over one task for each of ``seconds``, in their order."""
    settings = (f"rollout.tasks_per_step={PER_STEP}", f"rollout.group_size={GROUP}", f"training.steps={steps}")
    config = load_config(None, *settings, *overrides, environ={})
    rows = [{"number": number, "seconds": each} for number, each in enumerate(seconds)]
    bound = StalenessBound(config.rollout.max_staleness, PER_STEP)
    return GroupSupply(
        config,
        dispatcher_of(agent, concurrency=concurrency),
        InOrder(rows, seed=0),
        buffer(bound, config.rollout.on_stale, replaceable=config.rollout.dynamic_sampling * PER_STEP),
        qualifies=qualifies or (lambda group: True),
        stopwatch=Stopwatch(),
    )


class InOrder(TaskOrder):
    """Not shuffled, so that a test can say which group takes how long."""

    def _index(self, position):
        return position % len(self._tasks)


async def trained(supply, steps):
    """What each step takes, where learning takes no time."""
    taken = []
    async with supply:
        for version in range(steps):
            taken.append(await supply.take())
            supply.served(version + 1)
    return taken


def ordinals(groups):
    return [group.ordinal for group in groups]


waits = st.lists(st.sampled_from([0.0, 0.001, 0.004]), min_size=1, max_size=7)


@given(waits, st.integers(1, 9))
def test_without_staleness_a_step_takes_the_next_groups_of_the_order_however_they_finish(seconds, concurrency):
    steps = in_time(trained(supply_of(seconds=seconds, concurrency=concurrency), 4))
    assert [ordinals(taken.groups) for taken in steps] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@given(waits, st.integers(1, 9), st.integers(1, 3))
def test_every_group_is_trained_once_and_in_time(seconds, concurrency, bound):
    supply = supply_of(f"rollout.max_staleness={bound}", seconds=seconds, concurrency=concurrency, steps=6)
    steps = in_time(trained(supply, 6))
    assert sorted(ordinal for taken in steps for ordinal in ordinals(taken.groups)) == list(range(18))
    for version, taken in enumerate(steps):
        assert ordinals(taken.groups) == sorted(ordinals(taken.groups))
        oldest = min(episode.version for group in taken.groups for episode in group.episodes)
        assert version - oldest <= bound
    assert not any(taken.stale or taken.left_out for taken in steps)


@given(st.sets(st.integers(0, 14), max_size=9), st.integers(1, 9), waits)
def test_dynamic_sampling_takes_the_lowest_groups_that_qualify_and_gives_up_at_its_bound(poor, concurrency, seconds):
    supply = supply_of(
        "rollout.dynamic_sampling=2",
        seconds=seconds,
        concurrency=concurrency,
        steps=2,
        qualifies=lambda group: group.ordinal not in poor,
    )
    steps = in_time(trained(supply, 2))
    consumed = -1
    for taken in steps:
        first, consumed = consumed + 1, max(ordinals((*taken.groups, *taken.left_out)))
        everything = sorted(ordinals((*taken.groups, *taken.left_out)))
        assert everything == list(range(first, consumed + 1))
        good = [ordinal for ordinal in everything if ordinal not in poor]
        assert set(good) <= set(ordinals(taken.groups))
        assert len(taken.groups) == PER_STEP
        # Either as many qualify as a step trains, or as many were replaced as it may replace.
        assert len(good) == PER_STEP or len(taken.left_out) == 2 * PER_STEP
        assert ordinals(taken.left_out) == [each for each in everything if each in poor][: 2 * PER_STEP]


class Sampling(GroupBuffer):
    """As if every episode had sampled a token when it was opened."""

    def finish(self, group, oldest, qualifies):
        super().finish(group, min(episode.version for episode in group.episodes), qualifies)


def test_a_dropped_task_comes_again_under_its_ordinal_with_samples_of_its_own():
    gate = asyncio.Event()

    async def first_is_slow(data):
        if data["number"] == 0 and not gate.is_set():
            await gate.wait()
        return 1.0

    async def scenario():
        overrides = ("rollout.on_stale=drop", "rollout.max_staleness=1")
        supply = supply_of(*overrides, agent=first_is_slow, seconds=[0.0] * 99, steps=6, buffer=Sampling)
        keys, stale = [], []
        async with supply:
            for version in range(6):
                if version == 3:
                    gate.set()
                    await asyncio.sleep(0.05)
                taken = await supply.take()
                keys += [episode.key for group in taken.groups for episode in group.episodes]
                stale += [episode.key for group in taken.stale for episode in group.episodes]
                supply.served(version + 1)
        return keys, stale

    keys, stale = in_time(scenario())
    assert [(key.group, key.sample) for key in stale] == [(0, 0), (0, 1)]
    again = [(key.task, key.sample) for key in keys if key.group == 0]
    assert again == [(0, PER_STEP * GROUP), (0, PER_STEP * GROUP + 1)]
    assert len(set(keys)) == len(keys) == 6 * PER_STEP * GROUP


def test_nothing_starts_while_it_is_paused_and_what_is_in_flight_ends():
    running = Counter()

    async def counted(data):
        running["now"] += 1
        running["begun"] += 1
        await asyncio.sleep(0.01)
        running["now"] -= 1
        return 1.0

    async def scenario():
        supply = supply_of("rollout.max_staleness=1", agent=counted, steps=9)
        async with supply:
            await supply.take()
            supply.pause()
            supply.served(1)
            await supply.at_rest()
            assert running["now"] == 0
            begun = running["begun"]
            await asyncio.sleep(0.03)
            assert running["begun"] == begun
            supply.resume()
            await supply.take()
            supply.served(2)
            await supply.take()
            assert running["begun"] > begun

    in_time(scenario())


def test_no_group_starts_that_no_step_would_train():
    begun = Counter()

    async def counted(data):
        begun["episodes"] += 1
        return 1.0

    in_time(trained(supply_of("rollout.max_staleness=3", agent=counted, steps=2), 2))
    assert begun["episodes"] == 2 * PER_STEP * GROUP


def test_what_stops_the_rollout_reaches_whoever_waits_for_a_step():
    async def broken(data):
        raise ValueError("it broke")

    with pytest.raises(RunError, match="it broke"):
        in_time(trained(supply_of(agent=broken, seconds=[0.0] * 900, steps=400, concurrency=64), 400))


def test_leaving_ends_what_is_in_flight():
    ended = []

    async def forever(data):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(data["number"])

    async def scenario():
        with contextlib.suppress(TimeoutError):
            async with supply_of(agent=forever) as supply, asyncio.timeout(0.05):
                await supply.take()

    in_time(scenario())
    assert len(ended) == PER_STEP * GROUP


@pytest.mark.parametrize(("algorithm", "warnings"), [("grpo", 1), ("{name: grpo, filter: zero_variance}", 0)])
def test_dynamic_sampling_without_a_filter_is_told_to_have_no_effect(tmp_path, algorithm, warnings):
    told = io.StringIO()
    settings = (f"run.dir={tmp_path}", "rollout.dynamic_sampling=2", f"algorithm={algorithm}")
    with Trainer(load_config(None, *settings, environ={}), reporter=PlainReporter(told)) as trainer:
        trainer.check(sleeps)
    assert told.getvalue().count("warning: rollout.dynamic_sampling has no effect: ") == warnings
