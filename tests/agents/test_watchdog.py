"""An agent that blocks the event loop is named, and cannot block it for ever."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from agentrl.agents.watchdog import Blocked, Holder, LoopWatchdog


async def watch(block, *, patience=0.1, deadline=60.0):
    reports = []
    async with LoopWatchdog("my-agent", reports.append, patience=patience, deadline=deadline):
        await asyncio.sleep(0)
        await block()
        await asyncio.sleep(0)
    return reports


def test_a_blocking_agent_is_named_once_with_its_place_and_the_fix():
    async def block():
        time.sleep(0.5)  # noqa: ASYNC251 - blocking is what is tested

    (report,) = asyncio.run(watch(block))
    assert "agent 'my-agent' has blocked the event loop" in report
    assert "test_watchdog.py:" in report
    assert "in block" in report
    assert "asyncio.to_thread" in report
    assert "rollout.mode=subproc" in report


def test_an_agent_that_awaits_is_not_reported():
    async def polite():
        for _ in range(10):
            await asyncio.sleep(0.03)

    assert asyncio.run(watch(polite, patience=2.0)) == []


def test_work_of_the_loop_itself_is_not_put_down_to_the_agent():
    async def crowded():
        for _ in range(5):
            asyncio.get_running_loop().call_soon(time.sleep, 0.1)
        await asyncio.sleep(0)

    assert asyncio.run(watch(crowded)) == []


def test_work_of_the_loop_itself_is_not_broken_however_long_it_takes():
    broken = []

    async def crowded():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: broken.append(context))
        loop.call_soon(time.sleep, 0.8)
        await asyncio.sleep(0)

    assert asyncio.run(watch(crowded, deadline=0.2)) == []
    assert broken == []


def test_each_spell_of_blocking_is_reported():
    async def block():
        for _ in range(2):
            time.sleep(0.4)  # noqa: ASYNC251 - blocking is what is tested
            await asyncio.sleep(0.1)

    assert len(asyncio.run(watch(block))) == 2


def test_a_busy_loop_is_broken_at_the_deadline():
    async def forever():
        while True:
            pass

    with pytest.raises(Blocked, match="past the episode's deadline"):
        asyncio.run(watch(forever, deadline=0.3))


def test_a_loop_that_waits_for_a_thread_to_start_is_not_broken():
    """The new thread has the old one's identity until it runs, and would be the one to end."""

    class Slow(threading.Event):
        def wait(self, timeout=None):
            ended = time.monotonic() + 0.8
            while time.monotonic() < ended:
                time.sleep(0.02)
            return super().wait(timeout)

    async def start():
        thread = threading.Thread(target=int)
        thread._started = Slow()
        thread.start()
        thread.join()

    assert len(asyncio.run(watch(start, deadline=0.2))) == 1


def test_a_loop_that_holds_nobody_up_is_reported_once_it_does():
    reports = []
    asked = []

    async def block():
        async with LoopWatchdog(
            "a", reports.append, patience=0.1, deadline=60.0, harms=lambda: asked.append(1) or len(asked) > 3, fix="F"
        ):
            time.sleep(0.6)  # noqa: ASYNC251 - blocking is what is tested

    asyncio.run(block())
    (report,) = reports
    assert report.endswith(": F")
    assert len(asked) == 4


def test_a_loop_that_waits_is_not_taken_for_blocked_however_short_the_deadline():
    async def waits():
        await asyncio.sleep(1.2)

    assert asyncio.run(watch(waits, patience=2.0, deadline=0.01)) == []


class Scoring(Exception):
    pass


def score(code):
    return code()


def forever():
    while True:
        pass


SCORING = Holder("the reward", Scoring, "make it faster")


async def watch_scoring(agent, code):
    reports = []
    others = {score.__code__: SCORING}
    async with LoopWatchdog(agent, reports.append, patience=0.1, deadline=0.3, others=others):
        await asyncio.sleep(0)
        with contextlib.suppress(Scoring):
            code()
        await asyncio.sleep(0)
    return reports


@pytest.mark.parametrize("agent", ["my-agent", None])
def test_whoever_else_holds_the_loop_is_named_and_broken_in_the_agents_place(agent):
    (report,) = asyncio.run(watch_scoring(agent, lambda: score(forever)))
    assert report.startswith("the reward has blocked the event loop")
    assert report.endswith("make it faster")


def test_where_no_agent_runs_nobody_is_reported_for_what_is_nobodys_known():
    assert asyncio.run(watch_scoring(None, lambda: time.sleep(0.8))) == []


def test_code_that_goes_on_regardless_is_broken_again(monkeypatch):
    monkeypatch.setattr("agentrl.agents.watchdog._AGAIN_S", 0.2)
    caught = []

    def insists():
        while len(caught) < 3:
            try:
                forever()
            except Scoring as error:
                caught.append(error)

    asyncio.run(watch_scoring(None, lambda: score(insists)))
    assert len(caught) == 3


def test_a_thousand_tasks_with_a_short_step_each_block_nothing(monkeypatch):
    reports = []

    async def step():
        time.sleep(0.002)  # noqa: ASYNC251

    async def scenario():
        async with LoopWatchdog("many", reports.append, patience=0.4, deadline=60):
            await asyncio.gather(*(step() for _ in range(700)))

    asyncio.run(scenario())
    assert reports == []
