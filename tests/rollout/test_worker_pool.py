"""Placing episodes on workers: least loaded first, apart from those that must be alone, and nobody waits for ever."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agentrl.rollout.subproc.pool import Assignment, WorkerLoad, assign


def placed(waiting, loads, *, capacity=4, starting=0, room=0):
    return assign(waiting, loads, capacity=capacity, starting=starting, room=room)


def test_an_episode_goes_to_the_least_loaded_worker_with_a_place():
    assert placed([False, False], [WorkerLoad(3), WorkerLoad(1), WorkerLoad(2)]) == Assignment([(0, 1), (1, 1)], 0)
    assert placed([False], [WorkerLoad(4), WorkerLoad(4)]) == Assignment([], 0)


def test_as_many_workers_are_started_as_there_is_need_and_room_for():
    assert placed([False] * 9, [], room=8).starts == 3
    assert placed([False] * 9, [WorkerLoad(0)], starting=1, room=8).starts == 1
    assert placed([False] * 9, [], room=2).starts == 2


def test_an_episode_that_must_be_alone_gets_an_empty_worker():
    assert placed([True, False], [WorkerLoad(1), WorkerLoad(0)]) == Assignment([(0, 1), (1, 0)], 0)
    assert placed([True, True, False], [], room=9).starts == 3


def test_where_no_worker_is_empty_the_least_loaded_takes_no_more():
    assert placed([True, False], [WorkerLoad(2), WorkerLoad(1)]) == Assignment([(1, 0)], 0)
    assert placed([True, False], [WorkerLoad(1)]) == Assignment([], 0)


def test_nobody_joins_an_episode_that_is_alone():
    assert placed([False, True], [WorkerLoad(1, closed=True)]) == Assignment([], 0)


def test_a_worker_that_is_about_to_live_is_waited_for_instead_of_emptied():
    assert placed([True, False], [WorkerLoad(1)], starting=1) == Assignment([(1, 0)], 0)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_every_episode_has_its_turn_and_none_that_is_alone_has_company(waiting, workers, capacity, seed):
    choose = random.Random(seed)
    queue, running, loads = list(waiting), [], [WorkerLoad() for _ in range(workers)]
    arrivals = choose.randrange(40)
    for _ in range(10 * (len(waiting) + arrivals) + 10):
        if arrivals and choose.random() < 0.5:
            arrivals -= 1
            queue.append(False)  # They keep coming: nobody may be starved by them.
        step = assign(queue, loads, capacity=capacity, starting=0, room=0)
        for waiter, worker in step.placed:
            loads[worker].episodes += 1
            loads[worker].closed = queue[waiter]
            running.append(worker)
        queue = [alone for index, alone in enumerate(queue) if index not in dict(step.placed)]
        assert all(load.episodes <= (1 if load.closed else capacity) for load in loads)
        if running:
            worker = running.pop(choose.randrange(len(running)))
            loads[worker].episodes -= 1
            loads[worker].closed = False
    assert not queue
