"""The order of tasks is a function of seed and cursor, so that a run can be repeated and taken up again."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import load_config
from agentrl.rollout.contract import EpisodeKey
from agentrl.training.requests import LARGEST_VERSION, group_request
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


def rows(*overrides):
    return load_config(None, *overrides, environ={})


@given(sizes, st.integers(0, 30), st.integers(1, 12), st.integers(1, 5))
def test_groups_are_numbered_by_the_task_order_and_a_repeated_task_is_sampled_anew(size, first, count, group):
    config = rows(f"rollout.group_size={group}", f"rollout.tasks_per_step={count}")
    order = TaskOrder(tasks(size), 7)
    ordinals = range(first * count, (first + 1) * count)  # Those of a step, where every group is trained in its turn.
    requests = [group_request(config, order, ordinal, lambda: 3) for ordinal in ordinals]
    assert [request.ordinal for request in requests] == list(ordinals)
    taken = TaskOrder(tasks(size), 7, cursor=ordinals[0]).take(count)
    assert [(request.task, request.data) for request in requests] == [(task.index, task.data) for task in taken]
    sampled: dict[int, list[int]] = {}
    for request in requests:
        assert len(request.samples) == group
        sampled.setdefault(request.task, []).extend(request.samples)
    assert all(samples == list(range(len(samples))) for samples in sampled.values())


@given(sizes, st.integers(1, 6), st.integers(1, 4))
def test_no_two_episodes_of_a_run_sample_the_same_tokens_not_even_those_that_come_again(size, block, group):
    config = rows(f"rollout.group_size={group}", f"rollout.tasks_per_step={block}")
    order, seeds = TaskOrder(tasks(size), 7), Counter()
    for ordinal in range(4 * block):
        for attempt in range(3):
            request = group_request(config, order, ordinal, lambda: 0, attempt=attempt)
            keys = (EpisodeKey("train", ordinal, request.task, sample) for sample in request.samples)
            seeds.update(request.settings(key).seed_key for key in keys)
    assert set(seeds.values()) == {1}


def test_a_session_is_seeded_by_its_block_of_the_order_and_carries_the_versions_of_its_bound():
    order = TaskOrder(tasks(9), 1)
    for overrides, newest in ((), 5), (("rollout.max_staleness=2",), 7), (("rollout.on_stale=mask",), LARGEST_VERSION):
        config = rows("seed=5", "rollout.tasks_per_step=3", *overrides)
        request = group_request(config, order, 7, lambda: 5)
        settings = request.settings(EpisodeKey("train", request.ordinal, request.task, 1))
        assert settings.seed_key == (5, "train", 2, request.task, 1)
        assert settings.versions == (5, newest)


def test_an_episode_that_starts_later_is_of_the_version_at_its_start_and_of_the_bound_of_its_group():
    served = iter([2, 3])
    request = group_request(rows("rollout.max_staleness=1"), TaskOrder(tasks(9), 1), 7, lambda: next(served))
    assert request.settings(EpisodeKey("train", 7, request.task, 1)).versions == (3, 3)
