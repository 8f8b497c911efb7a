"""Which sessions are a group, and when it is whole: by its name, its size, its closing and its age."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from agentrl.gateway.groups import ClosedGroup, SessionGroups
from agentrl.rollout.contract import EpisodeKey


def train(group: int, sample: int = 0) -> EpisodeKey:
    return EpisodeKey("train", group, group, sample)


def test_a_session_without_a_name_is_whole_when_it_ends():
    groups = SessionGroups(4)
    assert [groups.open("train", None, 0.0) for _ in range(2)] == [train(0), train(1)]
    assert groups.ended(train(1), 1.0)
    assert groups.ended(train(0), 1.0)


def test_a_group_is_whole_when_all_its_sessions_were_opened_and_have_ended():
    groups = SessionGroups(2)
    first, second = groups.open("train", "sum", 0.0), groups.open("train", "sum", 0.0)
    assert (first, second) == (train(0, 0), train(0, 1))
    assert groups.open("train", "sum", 0.0) == train(1), "a further session begins another group of the name"
    assert not groups.ended(second, 1.0)
    assert groups.ended(first, 1.0)


def test_a_group_that_is_told_to_close_waits_for_those_that_are_open():
    groups = SessionGroups(8)
    first, second = groups.open("train", "sum", 0.0), groups.open("train", "sum", 0.0)
    assert not groups.ended(first, 1.0)
    assert groups.close("sum") == ClosedGroup(2, 1)
    assert groups.open("train", "sum", 2.0) == train(1)
    assert groups.ended(second, 3.0)
    assert groups.close("other") == ClosedGroup()


def test_a_group_that_has_ended_so_far_is_whole_at_once_when_it_closes():
    groups = SessionGroups(8)
    groups.ended(groups.open("train", "sum", 0.0), 1.0)
    assert groups.close("sum") == ClosedGroup(1, 0, (train(0),))


def test_a_group_expires_once_nobody_is_in_it_for_long_enough():
    groups = SessionGroups(8)
    ended, open_ = groups.open("train", "ended", 0.0), groups.open("train", "open", 0.0)
    groups.ended(ended, 5.0)
    assert list(groups.expire(4.9)) == []
    assert list(groups.expire(5.0)) == [train(ended.group)]
    assert list(groups.expire(99.0)) == [], "one with an open session does not expire: its sessions do"
    assert groups.open("train", "open", 9.0).group == open_.group


def test_groups_without_a_size_go_on_for_ever():
    groups = SessionGroups()
    keys = [groups.open("train", "sum", 0.0) for _ in range(3)]
    assert [groups.ended(key, 0.0) for key in keys] == [False] * 3
    assert list(groups.expire(1e9)) == []
    assert groups.open("train", "sum", 1e9) == train(0, 3)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["open", "end", "close", "expire"]), st.integers(0, 5))),
    st.data(),
)
def test_every_session_is_in_one_group_that_becomes_whole_once(size, steps, data):
    groups, running, ended, whole = SessionGroups(size), [], defaultdict(list), []
    names = [None, "a", "b"]
    for now, (action, number) in enumerate(steps):
        if action == "open":
            running.append(groups.open("train", names[number % 3], float(now)))
        elif action == "end" and running:
            key = running.pop(number % len(running))
            ended[key.group].append(key)
            whole += [key.group] if groups.ended(key, float(now)) else []
        elif action == "close":
            whole += [key.group for key in groups.close(names[1 + number % 2]).whole]
        elif action == "expire":
            whole += [key.group for key in groups.expire(float(now - number))]
        assert not {key.group for key in running} & set(whole), "a group with an open session is not whole"
    for key in running:
        ended[key.group].append(key)
        whole += [key.group] if groups.ended(key, 1e6) else []
    whole += [key.group for key in groups.expire(1e9)]
    assert sorted(whole) == sorted(ended)
    assert all(sorted(key.sample for key in keys) == list(range(len(keys))) for keys in ended.values())
    assert all(len(keys) <= size for keys in ended.values())
