"""The inline runner: deadlines, private data, and agents that try to take the loop down."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import pytest

from agentrl.agents.binding import bind_agent
from agentrl.errors import AgentError, EpisodeTimeout
from agentrl.rollout import inline
from agentrl.rollout.contract import Activity
from agentrl.rollout.inline import InlineRunner


def run(agent, data=None, *, deadline_s=5.0):
    runner = InlineRunner(bind_agent(agent, {}, name="agent"))
    return asyncio.run(runner.run(data or {}, {}, deadline_s=deadline_s, activity=lambda: Activity("in call 2")))


def test_the_agent_works_on_its_own_deep_copy():
    async def greedy(data):
        data["items"].clear()
        return 1.0

    task = {"items": [1, 2]}
    run(greedy, task)
    assert task == {"items": [1, 2]}


def test_a_deadline_names_the_stage_and_ends_the_agent():
    ended = []

    async def slow(data):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(EpisodeTimeout, match=r"within 0\.05 s; it was in call 2.*rollout\.episode_timeout"):
        run(slow, deadline_s=0.05)
    assert ended == [True]


def test_an_agent_that_exits_costs_its_episode_only():
    async def leaves(data):
        sys.exit(3)

    with pytest.raises(AgentError, match=r"SystemExit\(3\)"):
        run(leaves)


def test_what_is_no_exception_of_the_ordinary_kind_is_the_agents_error_too():
    class Stop(BaseException):
        pass

    async def stops(data):
        raise Stop("enough")

    with pytest.raises(AgentError, match=r"Stop\(enough\)"):
        run(stops)


def test_an_agent_that_cancels_itself_is_no_interruption_of_the_run():
    async def cancels(data):
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    with pytest.raises(AgentError, match="cancelled its own task"):
        run(cancels)


def test_what_the_agent_raises_passes_through():
    async def broken(data):
        raise LookupError("no such tool")

    with pytest.raises(LookupError, match="no such tool"):
        run(broken)


def test_an_agent_that_ignores_its_cancellation_is_ended_all_the_same(monkeypatch):
    monkeypatch.setattr(inline, "_GRACE_S", 0.05)
    ended = []

    async def stubborn(data):
        try:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(EpisodeTimeout):
        run(stubborn, deadline_s=0.05)
    assert ended == [True]


def test_cancelling_the_episode_ends_the_agent():
    ended = asyncio.Event()

    async def waits(data):
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def scenario():
        runner = InlineRunner(bind_agent(waits, {}, name="agent"))
        task = asyncio.create_task(runner.run({}, {}, deadline_s=60, activity=str))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended.is_set()

    assert asyncio.run(scenario())
