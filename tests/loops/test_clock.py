"""Time stands still while the process is paused, and at no other time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.loops import TICK_S, AwakeClock


class Machine:
    """A process whose every second is told."""

    def __init__(self):
        self.now = self.used = 100.0
        self.others_pause = False
        self.clock = AwakeClock(lambda: self.now, lambda: self.used, lambda: self.others_pause)
        self.clock.start()
        self.began = self.clock.time()

    def run(self, seconds, *, working=0.0):
        """It is awake, and somebody ticks."""
        for _ in range(round(seconds / TICK_S)):
            self.skip(TICK_S, working=working)
            self.clock.tick()

    def skip(self, seconds, *, working=0.0):
        """Nobody ticks."""
        self.now += seconds
        self.used += seconds * working

    @property
    def passed(self):
        return self.clock.time() - self.began


def test_time_goes_on_while_the_process_runs_or_waits():
    machine = Machine()
    machine.run(10)
    machine.run(10, working=1.0)
    assert machine.passed == pytest.approx(20)


@pytest.mark.parametrize("pause", [3, 60, 86400])
def test_a_pause_does_not_count(pause):
    machine = Machine()
    machine.run(5)
    machine.skip(pause)
    assert machine.passed <= 6  # Also before anybody could notice.
    machine.clock.tick()
    machine.run(5)
    assert 10 <= machine.passed <= 11


def test_a_call_that_lets_nobody_else_run_counts():
    machine = Machine()
    machine.run(5)
    machine.skip(30, working=1.0)
    machine.clock.tick()
    assert machine.passed == pytest.approx(35)


def test_time_stands_still_while_somebody_else_is_paused_whom_all_here_wait_for():
    machine = Machine()
    machine.run(5)
    machine.others_pause = True
    machine.run(600)
    machine.others_pause = False
    machine.run(5)
    assert 10 <= machine.passed <= 11


def test_where_nobody_ticks_it_is_the_monotonic_clock():
    assert AwakeClock(lambda: 7.0).time() == 7.0


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 2), st.booleans(), st.booleans()),
        max_size=30,
    )
)
def test_time_never_goes_back_nor_faster_than_the_clock_on_the_wall(events):
    machine = Machine()
    last = machine.clock.time()
    for seconds, working, ticks, others_pause in events:
        machine.skip(seconds, working=working)
        machine.others_pause = others_pause
        if ticks:
            machine.clock.tick()
        assert last <= machine.clock.time() + 1e-9
        last = machine.clock.time()
    assert machine.passed <= machine.now - 100.0 + 1e-9


DEADLINES = """
import asyncio, sys, threading
from agentrl.agents.binding import bind_agent
from agentrl.agents.watchdog import LoopWatchdog
from agentrl.doctor.examination import Alarm
from agentrl.rollout.inline import InlineRunner
from agentrl.training.interrupts import run_to_end
from agentrl.training.deadlines import within

async def agent(data):
    await asyncio.sleep(1)
    return 1.0

async def episode():
    runner = InlineRunner(bind_agent(agent, {}, name="agent"))
    assert await runner.run({}, {}, deadline_s=2.5, activity=str) == 1.0

async def backend():
    await within(2.5, "the backend", asyncio.sleep(1))

async def timeout():
    async with asyncio.timeout(2.5):
        await asyncio.sleep(1)

async def wait():
    done, _ = await asyncio.wait({asyncio.ensure_future(asyncio.sleep(1))}, timeout=2.5)
    assert done

async def main():
    said = []
    async with LoopWatchdog("agent", said.append, deadline=2.5):
        print("begun", flush=True)
        await asyncio.gather(episode(), backend(), timeout(), wait())
    assert not said, said

expired = []
with Alarm(expired.append) as alarm:
    alarm.set(2.5)
    run_to_end(main)
assert not expired
"""


@pytest.mark.slow
def test_no_deadline_counts_a_pause_of_the_process():
    process = subprocess.Popen([sys.executable, "-c", DEADLINES], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.5)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
