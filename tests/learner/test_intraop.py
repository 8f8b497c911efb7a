from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from agentrl.learner.intraop import threads_for_pass

TINY = 430_000


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_pass_runs_on_one_thread_and_the_others_come_back_after_it() -> None:
    with threads_for_pass(TINY, tokens=240):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_pass_that_fails_gives_the_threads_back() -> None:
    with pytest.raises(ZeroDivisionError), threads_for_pass(TINY, tokens=240):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("parameters", "tokens"), [(TINY, 8192), (500_000_000, 240)])
def test_what_is_worth_sharing_keeps_the_threads_that_torch_was_given(parameters: int, tokens: int) -> None:
    with threads_for_pass(parameters, tokens):
        assert torch.get_num_threads() == 2
