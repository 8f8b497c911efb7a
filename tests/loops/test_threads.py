"""Threads that are lent: calls that never end keep nobody from a turn, and nothing from its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from agentrl.loops import Borrower, Loop, Threads, run_in_thread


class Stuck:
    """A call that ends when the test does."""

    def __init__(self):
        self.over, self.begun = threading.Event(), threading.Semaphore(0)

    def __call__(self):
        self.begun.release()
        self.over.wait()


@pytest.fixture
def stuck():
    call = Stuck()
    yield call
    call.over.set()


def on_loop(main):
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


def test_no_more_calls_run_at_once_than_there_are_places(stuck):
    threads = Threads("test", most=2)
    held = [threads.submit(stuck) for _ in range(2)]
    assert all(stuck.begun.acquire(timeout=5) for _ in held)
    waits = threads.submit(str)
    with pytest.raises(TimeoutError):
        waits.result(0.05)
    threads.give_up(held[0])
    assert waits.result(5) == ""


def test_calls_share_threads_that_have_nothing_to_do():
    threads = Threads("test")
    assert len({threads.submit(threading.get_ident).result(5) for _ in range(20)}) < 20


def test_what_a_call_raises_is_whoever_waits_for_its():
    with pytest.raises(ZeroDivisionError):
        Threads("test").submit(lambda: 1 / 0).result(5)


def test_a_call_that_nobody_waits_for_any_more_holds_no_place(stuck):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Threads("test", most=2))
        for _ in range(6):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(stuck), 0.05)
        return await asyncio.to_thread(lambda: "done")

    assert on_loop(main()) == "done"


def test_a_borrower_that_leaves_frees_its_places_and_its_waiting_calls_are_cancelled(stuck):
    threads, borrower = Threads("test", most=1), Borrower()

    async def begin():
        borrower.enter()
        return threads.submit(stuck), threads.submit(stuck)

    runs, waits = asyncio.run(begin())
    assert stuck.begun.acquire(timeout=5)
    others = threads.submit(str)
    borrower.leave()
    assert others.result(5) == ""
    assert (runs.done(), borrower.running) == (False, 1)
    with pytest.raises(CancelledError):
        waits.result(5)


def test_what_is_called_for_a_borrower_that_has_left_holds_no_place(stuck):
    threads, borrower = Threads("test", most=1), Borrower()

    async def late():
        borrower.enter()
        borrower.leave()
        return [threads.submit(stuck) for _ in range(3)]

    held = asyncio.run(late())
    assert threads.submit(str).result(5) == ""
    assert borrower.running == len(held)


def test_our_own_calls_do_not_wait_for_those_of_agents(stuck):
    async def main():
        waiting = [asyncio.ensure_future(asyncio.to_thread(stuck)) for _ in range(64)]
        await asyncio.sleep(0)
        try:
            return await run_in_thread(lambda: "ours")
        finally:
            for call in waiting:
                call.cancel()

    assert on_loop(main()) == "ours"


def test_a_shutdown_waits_for_nobody(stuck):
    threads = Threads("test")
    running = threads.submit(stuck)
    assert stuck.begun.acquire(timeout=5)
    threads.shutdown()
    assert not running.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(str)


STUCK_CALL = "asyncio.to_thread(time.sleep, 3600)"
STUBBORN_TASK = "stubborn()"


@pytest.mark.parametrize("leftover", [STUCK_CALL, STUBBORN_TASK])
def test_neither_the_loop_nor_the_interpreter_waits_for_what_does_not_end(leftover):
    code = f"""
import asyncio, time
from agentrl.training import interrupts

async def stubborn():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def main():
    asyncio.ensure_future({leftover})
    await asyncio.sleep(0.05)
    return "ended"

interrupts._GRACE_S = 0.1
print(interrupts.run_to_end(main))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "ended\n"), ended.stderr
