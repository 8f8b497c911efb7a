"""The dispatcher: what is in flight, what is yielded when, and that every ending is a clean one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rollout.dispatching import dispatcher_of, in_time
from tests.rollout.requests import requests_of

from agentrl.errors import RunError
from agentrl.gateway import SessionSettings
from agentrl.rollout import dispatcher as dispatcher_module
from agentrl.rollout.contract import EpisodeKey
from agentrl.rollout.dispatcher import Dispatcher, GroupRequest

SETTINGS = SessionSettings(training=True, versions=(2, 3))
ROWS = [{"number": number} for number in range(12)]


def requests(count=4, samples=2, rows=ROWS):
    return requests_of(rows[:count], lambda key: SETTINGS, samples=samples, first=10)


async def taken(dispatcher, feeder, tasks):
    """Take every group, and add its task to ``tasks``."""
    async with contextlib.aclosing(dispatcher.dispatch(feeder)) as groups:
        async for group in groups:
            tasks.append(group.task)


async def at_once(data):
    return float(data["number"])


def test_groups_come_in_the_order_of_their_ordinals_with_their_samples_in_order():
    async def backwards(data):
        await asyncio.sleep(0.02 * (4 - data["number"]))
        return 1.0

    groups = in_time(dispatcher_of(backwards, concurrency=8).collect(requests()))
    assert [group.ordinal for group in groups] == [10, 11, 12, 13]
    assert [[episode.key for episode in group.episodes] for group in groups] == [
        [EpisodeKey("train", 10 + task, task, sample) for sample in range(2)] for task in range(4)
    ]
    assert {episode.version for group in groups for episode in group.episodes} == {2}


def test_a_group_is_yielded_once_its_last_episode_is_stored_and_waits_for_no_other():
    release = asyncio.Event()
    kept = []

    async def agent(data):
        if data["number"] == 0:
            await release.wait()
        return 1.0

    async def scenario():
        async with contextlib.aclosing(dispatcher_of(agent, kept=kept).dispatch(requests(3))) as groups:
            early = [await anext(groups), await anext(groups)]
            assert [group.task for group in early] == [1, 2]
            assert {episode.key for group in early for episode in group.episodes} <= {episode.key for episode in kept}
            release.set()
            assert (await anext(groups)).task == 0
            with pytest.raises(StopAsyncIteration):
                await anext(groups)

    in_time(scenario())


@given(st.integers(1, 7), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_at_most_concurrency_episodes_run_at_once_and_each_runs_once(concurrency, sizes):
    running, most, ran = 0, 0, []

    async def agent(data):
        nonlocal running, most
        running += 1
        most = max(most, running)
        ran.append(data["number"])
        await asyncio.sleep(0)
        running -= 1
        return 1.0

    asked = [
        GroupRequest("train", number, number, {"number": number}, range(size), lambda key: SETTINGS)
        for number, size in enumerate(sizes)
    ]
    groups = in_time(dispatcher_of(agent, concurrency=concurrency).collect(asked))
    assert most == min(concurrency, sum(sizes))
    assert sorted(ran) == [number for number, size in enumerate(sizes) for _ in range(size)]
    assert [len(group.episodes) for group in groups] == sizes


def test_a_feeder_without_end_is_asked_only_for_what_can_start():
    asked = []

    async def endless():
        while True:
            for request in requests(12, samples=2):
                asked.append(request.ordinal)
                yield request
                await asyncio.sleep(0)

    async def scenario():
        async with contextlib.aclosing(dispatcher_of(at_once, concurrency=4).dispatch(endless())) as groups:
            taken = [await anext(groups) for _ in range(30)]
            before = len(asked)
            assert before - len(taken) <= 4 + 4 + 1
        await asyncio.sleep(0.01)
        assert len(asked) == before

    in_time(scenario())


def test_a_consumer_that_takes_nothing_stops_the_dispatching():
    asked = []

    def endless():
        while True:
            for request in requests(12, samples=1):
                asked.append(request)
                yield request

    async def scenario():
        async with contextlib.aclosing(dispatcher_of(at_once, concurrency=3).dispatch(endless())) as groups:
            await anext(groups)
            for _ in range(5):
                await asyncio.sleep(0.02)
            # Taken, waiting to be taken, waiting for room to wait, and the one in the feeder's hand.
            assert len(asked) <= 1 + 3 + 3 + 1
            assert len([await anext(groups) for _ in range(20)]) == 20

    in_time(scenario())


def cleaned_up(ended):
    async def agent(data):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(data["number"])

    return agent


def test_a_consumer_that_leaves_ends_what_is_in_flight():
    ended = []
    agent = cleaned_up(ended)

    async def mixed(data):
        return 1.0 if data["number"] == 0 else await agent(data)

    async def scenario():
        async with contextlib.aclosing(dispatcher_of(mixed, concurrency=8).dispatch(requests(4))) as groups:
            await anext(groups)
        assert sorted(ended) == [1, 1, 2, 2, 3, 3]

    in_time(scenario())


def test_a_consumer_that_is_cancelled_ends_what_is_in_flight_however_often_it_is():
    ended = []

    async def scenario():
        task = asyncio.create_task(dispatcher_of(cleaned_up(ended), concurrency=3).collect(requests(3)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ended) == [0, 0, 1]

    in_time(scenario())


@pytest.mark.parametrize("source", ["the feeder", "what stores episodes"])
def test_the_first_error_is_raised_once_the_others_have_ended(source):
    ended = []
    agent = cleaned_up(ended)

    async def mixed(data):
        return 1.0 if data["number"] == 0 else await agent(data)

    async def broken(episode):
        raise OSError("disk full")

    async def feeder():
        for request in requests(3, samples=1):
            yield request
        await asyncio.sleep(0.05)
        if source == "the feeder":
            raise OSError("disk full")

    async def scenario():
        dispatcher = dispatcher_of(mixed, concurrency=8)
        if source != "the feeder":
            dispatcher = Dispatcher(dispatcher.runner, 8, dispatcher.budget, broken)
        with pytest.raises(OSError, match="disk full"):
            await taken(dispatcher, feeder(), [])
        assert set(ended) == {1, 2}

    in_time(scenario())


def test_groups_that_finished_before_an_error_are_yielded_before_it():
    async def agent(data):
        if data["number"] == 2:
            await asyncio.sleep(0.05)
            raise ValueError("broken tool")
        return 1.0

    async def scenario():
        got = []
        dispatcher = dispatcher_of(agent, budget=0.0)
        with pytest.raises(RunError, match="broken tool"):
            await taken(dispatcher, requests(3, samples=1), got)
        assert sorted(got) == [0, 1]

    in_time(scenario())


def test_one_failed_episode_never_sinks_its_group():
    runs = iter(range(100))
    kept = []

    async def agent(data):
        if next(runs) == 1:
            raise ValueError("once")
        return 1.0

    groups = in_time(dispatcher_of(agent, kept=kept).collect(requests(2, samples=3)))
    assert [group.task for group in groups] == [0, 1]
    outcomes = [episode.outcome for group in groups for episode in group.episodes]
    assert sorted(outcomes) == ["failed"] + ["rewarded"] * 5
    assert {str(episode.key) for episode in kept} == {str(e.key) for g in groups for e in g.episodes}


def test_an_agent_that_only_fails_stops_what_is_dispatched_and_its_siblings():
    ended = []

    async def agent(data):
        try:
            if len(ended) < 3:
                raise ValueError("broken tool")
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(RunError, match=r"3 of the last 3 episodes failed.*3x agent: ValueError: broken tool"):
        in_time(dispatcher_of(agent, window=4).collect(requests(1, samples=4)))
    assert len(ended) == 4


def test_a_few_episodes_that_all_fail_stop_at_their_end_though_no_window_is_full():
    async def agent(data):
        raise ValueError("broken tool")

    with pytest.raises(RunError, match=r"4 of 4 episodes failed.*4x agent: ValueError: broken tool"):
        in_time(dispatcher_of(agent, window=64).collect(requests(2)))


def test_the_window_slides_over_what_is_dispatched_one_after_another():
    async def agent(data):
        if data["fails"]:
            raise ValueError("broken tool")
        return 1.0

    async def scenario():
        dispatcher = dispatcher_of(agent, window=8, concurrency=1)
        some = [{"fails": number % 2 == 0} for number in range(4)]
        most = [{"fails": number > 0} for number in range(4)]
        await dispatcher.collect(requests(4, samples=1, rows=some))
        with pytest.raises(RunError, match="5 of the last 8 episodes failed"):
            await dispatcher.collect(requests(4, samples=1, rows=most))

    in_time(scenario())


@pytest.mark.parametrize(
    ("phase", "stage"), [("train", "the rollout of training episodes"), ("eval", "the evaluation")]
)
def test_episodes_that_their_executor_never_ends_stop_the_run_with_the_stage(monkeypatch, phase, stage):
    """Where an executor keeps no deadline and cannot be cancelled either."""
    monkeypatch.setattr(dispatcher_module, "AROUND_S", 0.1)
    monkeypatch.setattr(dispatcher_module, "_ENDING_S", 0.2)
    end = asyncio.Event()

    class Deaf:
        async def run(self, data, connection, **_):
            while not end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await end.wait()

    async def scenario():
        kept = dispatcher_of(at_once)
        runner = dataclasses.replace(kept.runner, agent=Deaf(), timeout=0.1)
        hanging = [dataclasses.replace(request, phase=phase) for request in requests(1)]
        try:
            with pytest.raises(RunError, match=f"^waited 0.3 s for {stage}: of 2 episodes in flight none") as stalled:
                await dataclasses.replace(kept, runner=runner).collect(hanging)
            assert f"the oldest is {phase}-10-0-0" in str(stalled.value)
        finally:
            end.set()

    in_time(scenario())


def test_an_end_is_expected_while_something_is_in_flight_and_after_every_end_anew(monkeypatch):
    expected = []
    arm = dispatcher_module._Dispatch.guard
    monkeypatch.setattr(dispatcher_module._Dispatch, "guard", lambda self, s: expected.append(s) or arm(self, s))
    in_time(dispatcher_of(at_once, concurrency=2).collect(requests(3, samples=1)))
    patience = dispatcher_of(at_once).patience
    assert patience == 2 * 30.0 + dispatcher_module.AROUND_S
    assert set(expected) == {patience, None}
    assert expected[0] == patience
    assert expected[-1] is None
    assert len(expected) >= 3 + 2
