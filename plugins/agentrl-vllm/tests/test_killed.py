"""A server that is killed in a run comes back with the newest weights, and serves once they are proven."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import begun, stopped_by
from fleet_of_fakes import FakeServer, FakeWeights
from servers import MARK, nothing_left, processes
from test_weights import Table
from well import TINY

from agentrl.errors import BackendError
from agentrl.inference.contract import BackendContext, Capabilities, HeldWeights, Sampling
from agentrl.inference.contract import GenerationRequest as Request
from agentrl.testing.backends.bench import read
from agentrl_vllm import backend as backends
from agentrl_vllm.backend import VllmBackend
from agentrl_vllm.command import Command
from agentrl_vllm.server import Server

PROGRAM = Path(__file__).with_name("serving_fake.py")
DEADLINE_S = 120.0


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], VllmBackend]:
    """A backend that starts one server of the tests' own, all of whose processes bear the path of its log."""
    log = tmp_path / "log"

    async def starting(context: Any, settings: Any, logs: Path, shared: Path, seconds: float) -> Any:
        def make(folder: Path) -> Server:
            def command(port: int, scratch: Path) -> Command:
                path = os.pathsep.join(filter(None, sys.path))
                env = {**os.environ, MARK: str(log), "PYTHONPATH": path}
                return Command((sys.executable, str(PROGRAM), str(port), str(folder), str(tmp_path / "wait")), env)

            return Server(command, name="vLLM server 0", log=log, shared=shared, start_timeout=DEADLINE_S)

        return [make]

    monkeypatch.setattr(backends, "_starting", starting)
    monkeypatch.setattr(backends, "find_python", lambda given: Path(sys.executable))
    options = {"weights_dir": str(tmp_path / "weights")}
    return lambda: VllmBackend(BackendContext(TINY, options=options, logs=tmp_path))


def serving(log: Path) -> psutil.Process:
    [found] = [each for each in processes(log) if each.cmdline()[1:2] == [str(PROGRAM)]]
    return found


async def until(happens: Callable[[], bool]) -> None:
    while not happens():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def test_what_was_under_way_is_answered_under_the_newest_weights(
    build: Callable[[], VllmBackend], tmp_path: Path
) -> None:
    log, wait = tmp_path / "log", tmp_path / "wait"

    async def scenario() -> None:
        backend = build()
        try:
            assert isinstance(await backend.start(), Capabilities)
            proof = await begun(backend, FakeWeights(0))
            for version in (1, 2):
                assert not await stopped_by(backend, proof, FakeWeights(version))
            wait.touch()
            request = Request([5, 6, 7], Sampling(max_tokens=20))
            reading = asyncio.ensure_future(read(backend, request))
            await until((tmp_path / "waits").exists)
            wait.unlink()
            serving(log).kill()
            chunk = await reading
            assert chunk.versions == (2,) * 20
            [replica] = backend.replicas
            assert (replica.life, replica.version, replica.folder.name) == (2, 2, "v2")
            held = await backend.held_weights()
            assert (held.version, held.tensors) == (2, FakeWeights(2).digests(held.tensors))
            assert not await stopped_by(backend, proof, FakeWeights(3))
        finally:
            await backend.stop()

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(bounded())
    assert nothing_left(log)


@pytest.fixture
def table(tmp_path: Path) -> Any:
    made = Table(tmp_path)
    yield made
    made.sync.close()


def started_again(table: Table, **tensors: float) -> FakeServer:
    """The first server after a kill: started on the newest weights, of which it has these."""
    table.put(FakeWeights(1))
    lost, server = table.replicas[0], table.servers[0]
    lost.state, lost.version, lost.life = "starting", None, lost.life + 1
    server.label, server.tensors = "default", {**server.tensors, **tensors}
    server.calls.clear()
    return server


def test_a_server_that_comes_back_is_proven_before_it_serves(table: Table) -> None:
    server = started_again(table)
    table.run(table.sync.admit(table.replicas[0]))
    stages = [call for call in server.calls if call in ("agentrl_compare", "update_weight_version", "resume")]
    assert stages == ["agentrl_compare", "update_weight_version", "resume"]
    assert (table.replicas[0].version, server.label) == (1, "1")


def test_one_that_comes_back_with_an_old_tensor_does_not_serve(table: Table) -> None:
    server = started_again(table, head=0)
    with pytest.raises(BackendError, match="and head in its memory is not what is there"):
        table.run(table.sync.admit(table.replicas[0]))
    assert "resume" not in server.calls
    assert table.replicas[0].version is None


def test_one_that_cannot_tell_says_so(table: Table) -> None:
    server = started_again(table)
    server.inability = "its weights are quantised (awq)"
    table.run(table.sync.admit(table.replicas[0]))
    assert table.replicas[0].version == 1
    assert "its weights are quantised (awq)" in table.said[-1]


def test_what_vllm_makes_of_tensors_from_the_start_is_no_fault_and_cannot_be_told(tmp_path: Path) -> None:
    """Some models have tensors that vLLM keeps in another form: the run then goes by recorded tokens."""
    table = Table(tmp_path, count=1, head=0.5)
    assert "vLLM changes tensors as it loads them" in table.said[-1]
    held: list[HeldWeights] = []

    async def ask() -> None:
        held.append(await table.sync.held(table.replicas[0]))

    table.run(ask())
    [replica] = table.replicas
    replica.version, replica.life = None, 2
    table.run(table.sync.admit(replica))
    assert replica.version == 0, "its successor serves as well"
    table.sync.close()
    assert (held[0].version, held[0].tensors) == (0, None)
    assert "head in its memory is not what is there" in held[0].inability
