"""A server that somebody has started by hand, with what the README says, is one that a run can attach to."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from real import PYTHON, START_S
from servers import MARK, processes
from training_runs import VLLM, run

from agentrl_vllm.installation import find_python
from agentrl_vllm.server import LOOPBACK, free_port

pytestmark = pytest.mark.real

PLUGIN = Path(__file__).parents[1]
COMMAND = re.compile(r"^\$ (VLLM_SERVER_DEV_MODE=1 python (?:.*\\\n)*.*)$", re.M)
ON_A_CPU = re.compile(r"On a CPU they need `([^`]+)`")


@pytest.fixture
def by_hand(tiny_model: Path, tmp_path: Path) -> Iterator[str]:
    """Its URL."""
    port = free_port()
    said = (PLUGIN / "README.md").read_text(encoding="utf-8")
    line = f"{COMMAND.search(said)[1]} {ON_A_CPU.search(said)[1]}".replace("\\\n", " ")  # type: ignore[index]
    python = find_python(Path(PYTHON) if PYTHON else None)
    given = {"python": str(python), "MODEL": str(tiny_model), "ADDRESS": LOOPBACK, "8000": str(port)}
    words = [given.get(word, word) for word in shlex.split(line)]
    # The plugin is installed in the server's environment; that is this one, whatever has been installed there.
    env = {**os.environ, "PYTHONPATH": str(PLUGIN / "src"), MARK: str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(["env", *words], env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(server, f"http://{LOOPBACK}:{port}", tmp_path / "log")
        yield f"http://{LOOPBACK}:{port}"
    finally:
        server.terminate()
        server.wait(START_S)
        for left in processes(tmp_path):
            left.kill()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    print(log.read_text())
    pytest.fail("the server that the README says how to start did not start")


def test_a_run_attaches_to_a_server_that_was_started_by_hand(by_hand: str, tmp_path: Path) -> None:
    brief = ("tasks.eval=null", "rollout.tasks_per_step=2", "training.checkpoint_every=0", "training.steps=3")
    ended = run(tmp_path / "run", "math", {"name": VLLM, "urls": [by_hand]}, *brief)
    assert ended.error is None
    assert ended.once_each
    assert ended.exact
    assert httpx.get(f"{by_hand}/health", trust_env=False).is_success, "the run has ended somebody's server"
