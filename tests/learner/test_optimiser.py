"""The learning rate over a run, and the threads that a pass is worth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from agentrl.config.training import TrainingSection
from agentrl.learner.optimiser import learning_rate
from agentrl.learner.policy import limited_threads

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


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_a_small_pass_runs_on_one_thread_and_the_others_come_back_after_it() -> None:
    with limited_threads(TINY, tokens=240):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_a_pass_that_fails_gives_the_threads_back() -> None:
    with pytest.raises(ZeroDivisionError), limited_threads(TINY, tokens=240):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("parameters", "tokens"), [(TINY, 8192), (500_000_000, 240)])
@pytest.mark.usefixtures("_two_threads")
def test_what_is_worth_sharing_keeps_the_threads_that_torch_was_given(parameters: int, tokens: int) -> None:
    with limited_threads(parameters, tokens):
        assert torch.get_num_threads() == 2
