"""Processes that somebody else carries: what is lost with a machine is nobody's fault and is run elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from tests.rollout.batches import process_of

from agentrl.errors import WorkerError
from agentrl.rollout.subproc.executor import SubprocRunner
from agentrl.rollout.subproc.local import LocalCarrier

AGENT = """
import asyncio

async def agent(data):
    await asyncio.sleep(data["seconds"])
    return 1.0
"""
CONNECTION = {"base_url": "http://gateway.invalid/v1", "api_key": "none", "model": "policy"}


class NoEndpoint:
    base_url, api_key = "http://gateway.invalid/v1", "none"

    def attach(self, key):
        pass

    def detach(self, key):
        pass

    def close(self):
        pass


class Machines:
    """Starts processes here, each on a machine that may be lost."""

    def __init__(self, launch):
        self.carrier = LocalCarrier(launch)
        self.started = []
        self.gone = 0

    async def launch(self, env):
        if self.gone:
            self.gone -= 1
            raise WorkerError("the machine is gone")
        self.started.append(await self.carrier.launch(env))
        return self.started[-1]

    def lose(self):
        self.started[-1].lost = "is gone: node 7 has died"
        self.started[-1].kill()

    def close(self):
        self.carrier.close()


def test_an_episode_that_is_lost_with_its_machine_is_run_on_another(tmp_path):
    (tmp_path / "slow.py").write_text(AGENT)
    launch = process_of(f"{tmp_path}/slow.py:agent")
    machines = Machines(launch)
    runner = SubprocRunner(
        launch,
        concurrency=2,
        max_workers=1,
        episodes_per_worker=2,
        logs=None,
        open_worker_endpoint=NoEndpoint,
        warn=lambda _: None,
        carrier=machines,
    )

    async def scenario():
        async with asyncio.timeout(60), runner:
            alone = asyncio.create_task(runner.run({"seconds": 60}, CONNECTION, deadline_s=60, activity=str))
            await asyncio.sleep(0.5)
            machines.gone = 5  # More starts fail than would make a pool give up.
            machines.lose()
            # Though it was alone in its process, it is not to blame.
            with pytest.raises(WorkerError, match="is gone: node 7 has died"):
                await alone
            assert await runner.run({"seconds": 0}, CONNECTION, deadline_s=60, activity=str) == 1.0
            assert len(machines.started) == 2
            # Without a machine episodes wait, and with more there are more processes.
            runner.resize(0)
            machines.started[-1].kill()
            await asyncio.wait({machines.started[-1].exit}, timeout=30)
            waiting = asyncio.create_task(runner.run({"seconds": 0}, CONNECTION, deadline_s=60, activity=str))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            runner.resize(2)
            runner.warm()
            assert await waiting == 1.0
            runner.give_up(WorkerError("no machine is left"))
            with pytest.raises(WorkerError, match="no machine is left"):
                await runner.run({"seconds": 0}, CONNECTION, deadline_s=60, activity=str)

    asyncio.run(scenario())
