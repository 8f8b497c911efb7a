"""How many CPU threads torch uses: what one thread of ours is told changes nothing for another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch

from agentrl.threads import ThreadLimit, all_shared, threads, use_threads

TINY = 440_000
Result = TypeVar("Result")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_a_new_thread(function: Callable[[], Result]) -> Result:
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_small_pass_runs_on_one_thread_and_the_others_come_back_after_it() -> None:
    with ThreadLimit(TINY).of(tokens=240):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_pass_that_fails_gives_the_threads_back() -> None:
    with pytest.raises(ZeroDivisionError), ThreadLimit(TINY).of(tokens=240):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("parameters", "tokens"), [(TINY, 8192), (500_000_000, 240)])
def test_what_is_worth_sharing_keeps_the_threads_that_torch_was_given(parameters: int, tokens: int) -> None:
    with ThreadLimit(parameters).of(tokens):
        assert torch.get_num_threads() == 2


def test_a_thread_that_starts_while_another_is_limited_is_not() -> None:
    with threads(1):
        assert in_a_new_thread(torch.get_num_threads) == 2


def test_a_learner_uses_its_own_number_in_a_thread_that_has_another() -> None:
    limit = ThreadLimit(500_000_000)

    def work() -> tuple[int, int]:
        torch.set_num_threads(1)
        with limit.of(240):
            within = torch.get_num_threads()
        return within, torch.get_num_threads()

    assert in_a_new_thread(work) == (2, 1)


def test_a_number_that_somebody_sets_meanwhile_counts() -> None:
    with threads(1):
        pass
    torch.set_num_threads(3)
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="products count no threads of their own without MKL")
def test_products_alone_come_back_as_they_were() -> None:
    def work() -> list[int]:
        use_threads(2, products_alone=True)
        found = [torch.get_num_threads()]
        with threads(2):
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())
        with all_shared():
            found.append(torch.get_num_threads())
        return [*found, torch.get_num_threads()]

    assert in_a_new_thread(work) == [1, 2, 1, 2, 1]
    assert in_a_new_thread(torch.get_num_threads) == 2
