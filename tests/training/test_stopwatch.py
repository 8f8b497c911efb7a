"""Seconds of a step by its parts add up between two readings."""

from __future__ import annotations

import pytest

from agentrl.training.stopwatch import Stopwatch


def test_parts_add_up_until_they_are_taken() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])
    for seconds in (1.0, 2.0):
        with watch.time("rollout"):
            now[0] += seconds
    with watch.time("step"), watch.time("learner"):
        now[0] += 4.0
    assert watch.take() == {"seconds/rollout": 3.0, "seconds/learner": 4.0, "seconds/step": 4.0}
    assert watch.take() == {}


def test_a_part_that_raises_counts_too() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])

    def fail() -> None:
        now[0] += 1.0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch.time("rollout"):
        fail()
    assert watch.take() == {"seconds/rollout": 1.0}
