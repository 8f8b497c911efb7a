"""A rollout that is killed, or leaves at the second Ctrl-C, takes its workers and their children with it."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

SCRIPT = """
import asyncio, os, signal, sys
from pathlib import Path
from agentrl.rollout.subproc.executor import SubprocRunner
from agentrl.rollout.subproc.interpreter import AgentLaunch, worker_environment

class OrphanEndpoint:
    base_url, api_key = "http://gateway.invalid/v1", "none"
    attach = detach = lambda self, key: None
    close = lambda self: None

async def main(folder, end):
    process = AgentLaunch(f"{folder}/my_agent.py:agent", {}, Path(sys.executable), worker_environment([], os.environ))
    runner = SubprocRunner(
        process,
        concurrency=2,
        max_workers=2,
        episodes_per_worker=1,
        logs=None,
        open_worker_endpoint=OrphanEndpoint,
        warn=print,
    )
    async with runner:
        connection = {"base_url": "http://gateway.invalid/v1", "api_key": "none", "model": "policy"}
        episodes = [
            asyncio.create_task(runner.run({"folder": folder}, connection, deadline_s=60, activity=str))
            for _ in range(2)
        ]
        while len(list(Path(folder).glob("child.*"))) < 8:
            await asyncio.sleep(0.05)
        end()

ends = {"killed": lambda: os.kill(os.getpid(), signal.SIGKILL), "left": lambda: os._exit(130)}
asyncio.run(main(sys.argv[1], ends[sys.argv[2]]))
"""

AGENT = """
import os, subprocess, sys, time
from pathlib import Path

def agent(data):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    children = [subprocess.Popen(sleep, start_new_session=apart).pid for apart in (False, True)]
    for pid in (os.getpid(), os.getppid(), *children):
        Path(data["folder"], f"child.{pid}").touch()
    while True:
        pass
"""


@pytest.mark.parametrize("end", ["killed", "left"])
def test_workers_and_their_children_end_with_the_rollout(tmp_path, end):
    (tmp_path / "my_agent.py").write_text(AGENT)
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path, end], timeout=60, check=False)
    started = [int(path.suffix[1:]) for path in tmp_path.glob("child.*")]
    assert len(started) == 8
    deadline = time.monotonic() + 30
    while alive := [pid for pid in started if _lives(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
