"""Whoever listens to a run hears everything in order, and nobody waits for one that hangs or falls behind."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.reporting import listener as module
from agentrl.reporting.listener import Failure, Listener, settle


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Hang:
    """A call that does not return before it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._end = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self._end.wait(30)

    def end(self) -> None:
        self._end.set()


@pytest.fixture
def hang():
    hang = Hang()
    yield hang
    hang.end()


def listening(clock: Callable[[], float], patience: float = 10.0) -> tuple[Listener, list[Failure]]:
    failures: list[Failure] = []
    return Listener("slow", patience, failures.append, clock), failures


@given(st.lists(st.integers(), max_size=50))
def test_calls_are_made_in_order_and_all_of_them(numbers):
    heard: list[int] = []
    listener, failures = listening(Clock())
    for number in numbers:
        listener.tell("log", lambda number=number: heard.append(number))
    settle([listener])
    listener.close()
    assert heard == numbers
    assert not failures


def test_nothing_is_waited_for_and_a_call_is_late_only_past_its_deadline(hang):
    clock = Clock()
    listener, failures = listening(clock)
    listener.tell("log", hang)
    assert hang.begun.wait(10)
    clock.now = 10.0
    listener.tell("log", pytest.fail)
    assert failures == []
    clock.now = 10.1
    listener.tell("log", pytest.fail)
    assert failures == [Failure("slow", "log", why="did not return from log within 10 s")]


def test_one_that_hangs_does_not_keep_the_end_from_coming(hang):
    listener, failures = listening(clock=None, patience=0.05)
    listener.tell("finish", hang)
    listener.tell("finish", pytest.fail)
    settle([listener])
    (failure,) = failures
    assert failure.call == "finish"
    assert failure.error is None


def test_calls_that_are_left_past_the_deadline_of_the_end_are_counted(hang):
    clock = Clock()
    listener, failures = listening(clock)
    listener.tell("log", hang)
    for _ in range(2):
        listener.tell("log", pytest.fail)
    listener.settle(until=0.0)
    assert [failure.why for failure in failures] == ["had 3 calls left 10 s later"]


def test_a_backlog_is_bounded(hang, monkeypatch):
    monkeypatch.setattr(module, "_MOST_WAITING", 5)
    listener, failures = listening(Clock())
    listener.tell("log", hang)
    assert hang.begun.wait(10)
    for _ in range(6):
        listener.tell("log", pytest.fail)
    assert [failure.why for failure in failures] == ["has fallen 5 calls behind"]


def test_what_a_late_call_raises_in_the_end_is_not_told_again():
    end, begun, clock = threading.Event(), threading.Event(), Clock()

    def fail() -> None:
        begun.set()
        assert end.wait(30)
        raise ZeroDivisionError

    listener, failures = listening(clock)
    listener.tell("log", fail)
    assert begun.wait(10)
    clock.now = 11.0
    listener.settle(until=100.0)
    end.set()
    listener.close()
    assert [failure.error for failure in failures] == [None]


def test_the_thread_ends_with_the_listener():
    listener, _ = listening(Clock())
    listener.tell("log", lambda: None)
    settle([listener])
    listener.close()
    assert listener._thread is not None
    listener._thread.join(10)
    assert not listener._thread.is_alive()
