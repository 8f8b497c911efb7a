"""Seconds by stage add up between two readings."""

from __future__ import annotations

import pytest

from agentrl.runs.stopwatch import Stopwatch


def test_stages_add_up_until_they_are_taken() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])
    for seconds in (1.0, 2.0):
        with watch.stage("rollout"):
            now[0] += seconds
    with watch.stage("step"), watch.stage("learner"):
        now[0] += 4.0
    assert watch.take() == {"seconds/rollout": 3.0, "seconds/learner": 4.0, "seconds/step": 4.0}
    assert watch.take() == {}


def test_a_stage_that_raises_counts_too() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])

    def fail() -> None:
        now[0] += 1.0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch.stage("rollout"):
        fail()
    assert watch.take() == {"seconds/rollout": 1.0}
