"""Servers that fail in the middle of a run: it goes on without losing a task, or it stops and says why."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from real import KEYS, START_S
from servers import children
from training_runs import VLLM, Run, run

from agentrl_agents.math import MathAgent
from agentrl_vllm import control
from agentrl_vllm import replica as replicas
from agentrl_vllm.client import Client
from agentrl_vllm.replica import Replica
from agentrl_vllm.weights import WeightSync

pytestmark = pytest.mark.real

API, ENGINE = "api_server", "VLLM::EngineCore"
BRIEF = (
    "tasks.eval=null",
    "rollout.tasks_per_step=2",
    "training.checkpoint_every=0",
    # So much that the logprobs of one version are not those of the next.
    "training.learning_rate=1e-3",
)
A_STEP = 16
"""Episodes."""
UNDER_WAY_S = 0.5
HANG_S = 20

Strike = Callable[[], Awaitable[None]]


@dataclass
class Struck:
    """The agent ``math``; with an episode of the given number, from 1, something happens."""

    strikes: dict[int, Strike]
    begun: int = 0
    ended: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        self.begun += 1
        if strike := self.strikes.pop(self.begun, None):
            self.ended.append(asyncio.ensure_future(strike()))
        return await MathAgent().run(data, base_url=base_url, api_key=api_key, http_client=http_client)


OTHERS: set[psutil.Process] = set()
"""Processes that were there before the test."""


@pytest.fixture(autouse=True)
def _others() -> None:
    OTHERS.clear()
    OTHERS.update(children())


def processes(name: str) -> list[psutil.Process]:
    """The processes of the run's servers that bear ``name``, oldest first."""
    found = []
    for process in children() - OTHERS:
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if name in command and "supervisor.py" not in command:
                found.append(process)
    return sorted(found, key=psutil.Process.create_time)


def kill(name: str) -> Strike:
    """Kill the first process of that name while requests wait for it."""

    async def strike() -> None:
        victim = processes(name)[0]
        victim.suspend()
        await asyncio.sleep(UNDER_WAY_S)
        victim.kill()

    return strike


def hang(name: str) -> Strike:
    """Have the first process of that name take everything and answer nothing."""

    async def strike() -> None:
        processes(name)[0].suspend()

    return strike


@pytest.fixture
def at_update(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Path], Any]], None]:
    """``at_update(version, during)`` has a replica load weights ``version`` within ``during(folder)``."""
    plans: dict[str, Callable[[Path], Any]] = {}
    load = control.replace

    async def replace(client: Client, url: str, folder: Path) -> None:
        async with plans.pop(folder.name, _untouched)(folder):
            await load(client, url, folder)

    monkeypatch.setattr(control, "replace", replace)
    return lambda version, during: plans.update({f"v{version}": during})


@contextlib.asynccontextmanager
async def _untouched(folder: Path) -> Any:
    yield


def killing(name: str) -> Callable[[Path], Any]:
    """The server is killed while it loads."""

    @contextlib.asynccontextmanager
    async def during(folder: Path) -> Any:
        striking = asyncio.ensure_future(kill(name)())
        try:
            yield
        finally:
            await striking

    return during


@contextlib.asynccontextmanager
async def unreadable(folder: Path) -> Any:
    """The weights are gone for as long as they are loaded."""
    file = folder / "model.safetensors"
    aside = file.rename(folder.with_name("aside"))
    try:
        yield
    finally:
        aside.rename(file)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults that come so fast are not taken for a server that cannot be started."""
    monkeypatch.setattr(replicas, "_STEADY_S", 0.0)


@pytest.mark.usefixtures("patient")
def test_a_run_goes_on_when_its_server_dies_or_hangs(at_update: Callable[..., None], tmp_path: Path) -> None:
    agent = Struck({3: kill(ENGINE), 3 * A_STEP + 3: hang(API)})
    at_update(2, killing(API))
    ended = run(tmp_path / "run", agent, {"name": VLLM, **KEYS, "request_timeout": HANG_S}, *BRIEF, "training.steps=4")
    went_on(ended, 4, losses=3)
    assert f"did not answer /inference/v1/generate within {HANG_S} s" in ended.said


@pytest.mark.usefixtures("patient")
def test_a_run_goes_on_when_its_server_dies_or_fails_to_load(at_update: Callable[..., None], tmp_path: Path) -> None:
    agent = Struck({3: kill(API)})
    at_update(2, killing(ENGINE))
    at_update(3, unreadable)
    ended = run(tmp_path / "run", agent, {"name": VLLM, **KEYS}, *BRIEF, "training.steps=4")
    went_on(ended, 4, losses=3)
    assert "failed to load new weights: " in ended.said


@dataclass
class Waiting(Struck):
    """Waits with the first episode of the last step for what is to have happened by then."""

    happened: threading.Event = field(default_factory=threading.Event)
    last_step: int = 0

    async def run(self, data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
        if self.begun == (self.last_step - 1) * A_STEP:
            assert await asyncio.to_thread(self.happened.wait, START_S)
        return await super().run(data, base_url=base_url, api_key=api_key, http_client=http_client)


@pytest.mark.usefixtures("patient")
def test_a_server_that_is_lost_catches_up_with_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights change several times while it starts on those of the first step."""
    agent = Waiting({3: kill(ENGINE)}, last_step=6)
    admit = WeightSync.admit

    async def admitted(sync: WeightSync, replica: Replica) -> None:
        await admit(sync, replica)
        if replica.life > 1:
            agent.happened.set()

    monkeypatch.setattr(WeightSync, "admit", admitted)
    ended = run(tmp_path / "run", agent, {"name": VLLM, **KEYS, "replicas": 2}, *BRIEF, "training.steps=6")
    went_on(ended, 6, losses=1)
    assert agent.happened.is_set()


def went_on(ended: Run, steps: int, *, losses: int) -> None:
    print(ended.said)
    assert ended.error is None
    assert (ended.summary.outcome, ended.summary.steps) == ("completed", steps)
    assert ended.once_each
    assert ended.exact
    assert len(re.findall(r"vLLM server \d is taken out: ", ended.said)) == losses
    assert not processes(API)
