"""Blocks that are ended with an error, from any thread, without cancelling the task around them."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from agentrl.loops import Interruptible


class Ended(Exception):
    pass


def test_the_block_raises_and_its_task_goes_on():
    async def main():
        block = Interruptible()
        later = threading.Timer(0.01, block.interrupt, [Ended("now")])

        async def interrupted():
            with block:
                later.start()  # Not before: on a busy machine the time may pass before the block begins.
                await asyncio.sleep(3600)

        with pytest.raises(Ended, match="now"):
            await interrupted()
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()

    assert asyncio.run(main()) == 0


def test_after_its_end_nothing_happens():
    async def main():
        with Interruptible() as block:
            await asyncio.sleep(0)
        block.interrupt(Ended())
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_before_its_end_only_the_first_error_counts():
    async def main():
        with Interruptible() as block:
            block.interrupt(Ended("first"))
            block.interrupt(Ended("second"))
            await asyncio.sleep(3600)

    with pytest.raises(Ended, match="first"):
        asyncio.run(main())


def test_a_cancellation_at_the_same_time_stays_one():
    async def main():
        task = asyncio.current_task()
        with Interruptible() as block:
            block.interrupt(Ended())
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.sleep(3600)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_a_loop_that_is_gone_is_left_alone():
    block = Interruptible()
    loop = asyncio.new_event_loop()

    async def main():
        block.__enter__()

    loop.run_until_complete(main())
    loop.close()
    block.interrupt(Ended())


def test_a_session_counts_its_waiting_by_the_clock_of_deadlines(open_session):
    class Paused(asyncio.SelectorEventLoop):
        at = 100.0

        def time(self):
            return self.at

    async def main():
        loop, session = asyncio.get_running_loop(), open_session()
        with session.running():
            time.sleep(0.01)  # noqa: ASYNC251 - what passes while the clock stands still
            assert session.waited == 0.0
            loop.at = 103.0
            assert session.waited == 3.0
        loop.at = 110.0
        return session.waited

    with asyncio.Runner(loop_factory=Paused) as runner:
        assert runner.run(main()) == 3.0
