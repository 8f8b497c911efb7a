"""An episode's time is told apart by what it was spent on, also where calls overlap or their starts are not known."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.view.timeline import timeline


def episode(seconds, *calls):
    made = [
        Call(str(index), None, {}, {}, "stop", 1, 1, seconds=took, started=started, waited=waited)
        for index, (started, waited, took) in enumerate(calls)
    ]
    return Episode(EpisodeKey("train", 0, 0, 0), {}, "rewarded", 1.0, calls=tuple(made), seconds=seconds)


def told(line):
    return [(each.activity, each.start, each.seconds, each.lane) for each in line.stretches]


def test_between_the_calls_the_agent_works():
    line = timeline(episode(10.0, (1.0, 0.5, 2.0), (5.0, None, 3.0)))
    assert told(line) == [
        *(("agent", 0.0, 1.0, 0), ("waiting", 1.0, 0.5, 0), ("sampling", 1.5, 1.5, 0), ("agent", 3.0, 2.0, 0)),
        *(("call", 5.0, 3.0, 0), ("agent", 8.0, 2.0, 0)),
    ]
    assert (line.total("agent"), line.total("sampling", "call"), line.lanes) == (5.0, 4.5, 1)


def test_calls_that_overlap_are_in_rows_of_their_own():
    line = timeline(episode(4.0, (0.0, None, 3.0), (1.0, None, 1.0), (2.0, None, 2.0)))
    assert told(line) == [("call", 0.0, 3.0, 0), ("call", 1.0, 1.0, 1), ("call", 2.0, 2.0, 1)]
    assert line.lanes == 2


def test_without_starts_the_calls_stand_one_after_the_other():
    line = timeline(episode(9.0, (None, None, 2.0), (None, None, 3.0)))
    assert told(line) == [("call", 0.0, 2.0, 0), ("call", 2.0, 3.0, 0)]
    assert not line.is_timed


TIMES = st.floats(0, 100).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(TIMES, st.none() | TIMES, TIMES), max_size=8), TIMES)
def test_no_time_is_counted_twice_and_none_is_lost(calls, seconds):
    line = timeline(episode(seconds, *calls))
    assert line.total("waiting", "sampling", "call") == pytest.approx(sum(took for _, _, took in calls))
    busy, now = 0.0, 0.0
    for start, _, took in sorted(calls, key=lambda call: call[0]):
        busy += max(0.0, start + took - max(now, start))
        now = max(now, start + took)
    assert busy + line.total("agent") == pytest.approx(line.seconds)
    for lane in range(line.lanes):
        row = [each for each in line.stretches if each.lane == lane and each.call is not None]
        for one, other in pairwise(row):
            assert one.start + one.seconds <= other.start + 1e-9
