"""The order of tasks is a function of seed and cursor, so that a run can be repeated and taken up again."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import load_config
from agentrl.rollout.contract import EpisodeKey
from agentrl.training.loop import group_requests
from agentrl.training.task_order import TaskOrder

sizes = st.integers(1, 20)
takes = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def tasks(size):
    return [{"number": number} for number in range(size)]


@given(sizes, st.integers(0, 3))
def test_an_epoch_takes_every_task_once(size, seed):
    order = TaskOrder(tasks(size), seed)
    for _ in range(2):
        assert Counter(task.index for task in order.take(size)) == Counter(range(size))


@given(sizes, takes)
def test_taking_in_pieces_is_taking_at_once(size, counts):
    pieces = TaskOrder(tasks(size), 7)
    taken = [task for count in counts for task in pieces.take(count)]
    assert taken == TaskOrder(tasks(size), 7).take(sum(counts))


@given(sizes, st.integers(0, 50), st.integers(1, 20))
def test_an_order_goes_on_at_its_cursor(size, before, count):
    whole = TaskOrder(tasks(size), 7)
    whole.take(before)
    assert TaskOrder(tasks(size), 7, cursor=before).take(count) == whole.take(count)


def test_a_seed_gives_its_own_order():
    orders = {tuple(task.index for task in TaskOrder(tasks(20), seed).take(20)) for seed in range(3)}
    assert len(orders) == 3


def test_a_task_comes_with_its_own_data():
    assert all(task.data == {"number": task.index} for task in TaskOrder(tasks(9), 1).take(9))


@given(sizes, st.integers(0, 30), st.integers(1, 12), st.integers(1, 5))
def test_groups_are_numbered_by_the_task_order_and_a_repeated_task_is_sampled_anew(size, cursor, count, group):
    config = load_config(None, f"rollout.group_size={group}", environ={})
    taken = TaskOrder(tasks(size), 7, cursor=cursor).take(count)
    requests = group_requests(config, taken, version=3)
    assert [request.ordinal for request in requests] == list(range(cursor, cursor + count))
    assert [(request.task, request.data) for request in requests] == [(task.index, task.data) for task in taken]
    sampled: dict[int, list[int]] = {}
    for request in requests:
        assert len(request.samples) == group
        sampled.setdefault(request.task, []).extend(request.samples)
    assert all(samples == list(range(len(samples))) for samples in sampled.values())


def test_a_session_is_seeded_by_version_task_and_sample_and_not_by_the_position_in_the_order():
    config = load_config(None, "seed=5", environ={})
    seeds = set()
    for cursor in (0, 9):
        order = TaskOrder(tasks(9), 1, cursor=cursor)
        for request in group_requests(config, order.take(9), version=3):
            key = EpisodeKey("train", request.ordinal, request.task, 2)
            assert request.settings(key).seed_key == (5, "train", 3, request.task, 2)
            assert request.settings(key).versions == (3, 3)
            seeds.add(request.settings(key).seed_key)
    assert len(seeds) == 9
