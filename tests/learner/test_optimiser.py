"""The learning rate over a run, and the threads that a pass is worth."""

from __future__ import annotations

import pytest

from agentrl.config.training import TrainingSection
from agentrl.learner.optimiser import learning_rate

TINY = 430_000


def rates(**training):
    section = TrainingSection(learning_rate=1.0, steps=8, **training)
    return [learning_rate(section, step) for step in range(9)]


def test_constant_stays():
    assert set(rates()) == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_warm_up_rises_and_its_first_step_learns(schedule):
    rising = rates(warmup_steps=3, schedule=schedule)
    assert rising[:4] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_falls_to_zero_right_after_the_last_step(schedule):
    falling = rates(warmup_steps=2, schedule=schedule)
    assert falling[2:] == sorted(falling[2:], reverse=True)
    assert falling[5] == pytest.approx(0.5)
    assert falling[7] > 0
    assert falling[8] == pytest.approx(0.0)


def test_a_run_that_is_all_warm_up_has_a_rate():
    assert rates(warmup_steps=8, schedule="linear")[7] == pytest.approx(8 / 9)
