"""Work that has a deadline is left behind once it has passed, whatever the work does about it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentrl.loops import Overdue, finish_in_thread, in_time


def test_the_result_and_the_error_of_the_work_are_passed_on():
    async def work(error=None):
        await asyncio.sleep(0)
        if error:
            raise error
        return 3

    assert asyncio.run(in_time(work(), 30)) == 3
    with pytest.raises(TimeoutError) as raised:
        asyncio.run(in_time(work(TimeoutError("its own")), 30))
    assert not isinstance(raised.value, Overdue)


def test_a_call_in_a_thread_that_never_ends_is_left_behind():
    end = threading.Event()
    try:
        with pytest.raises(Overdue):
            asyncio.run(in_time_and_leave(finish_in_thread(end.wait, 60)))
    finally:
        end.set()


async def in_time_and_leave(work):
    """As a run does at its end: what is left does not keep it from ending."""
    try:
        return await in_time(work, 0.05)
    finally:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


def test_work_that_ends_when_it_is_cancelled_has_ended_when_it_is_overdue():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(Overdue):
        asyncio.run(in_time(work(), 0.01))
    assert ended


@pytest.mark.parametrize("error", [None, ZeroDivisionError()], ids=["ends", "raises"])
def test_whoever_is_cancelled_waits_for_what_cannot_be(error):
    begun, end, ended = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        assert end.wait(30)
        ended.append(True)
        if error:
            raise error

    async def main():
        task = asyncio.ensure_future(in_time(finish_in_thread(work), 30))
        assert await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        end.set()
        with pytest.raises(ZeroDivisionError if error else asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended
