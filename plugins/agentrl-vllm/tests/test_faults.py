"""A server without the learner's weights stops the run within one step, and the message says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults import begun, stopped_by
from fleet_of_fakes import FakeServer, FakeWeights
from stub import Stub
from test_backend import attached

from agentrl_vllm.backend import VllmBackend

HEAD = ("head",)
STEPS = 3


def told(server: FakeServer, folder: Path, last: FakeWeights, strike: Callable[[], None]) -> str:
    """What stops a run at ``last``, before which all is well and ``strike()`` happens to the server."""
    messages: list[str] = []

    async def scenario(backend: VllmBackend, listening: Stub) -> None:
        await backend.start()
        proof = await begun(backend, FakeWeights(0))
        for version in range(1, last.version):
            assert not await stopped_by(backend, proof, FakeWeights(version))
        strike()
        messages.append(await stopped_by(backend, proof, last))

    attached(server, folder, scenario)
    return messages[0]


def relabels(server: FakeServer) -> Callable[[], None]:
    def resume() -> None:
        FakeServer.resume(server)
        server.label = "1"

    return lambda: server.faults.update(resume=resume)


def test_a_run_whose_updates_arrive_is_not_stopped(tmp_path: Path) -> None:
    assert told(FakeServer("tiny"), tmp_path, FakeWeights(STEPS), lambda: None) == ""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong version", "it serves version 1, and was given version 3 (wrong version)"),
        ("missing tensor", "the new weights lack head"),
        ("tensor lost in memory", "it does not hold head (missing)"),
        ("old tensor", "it still holds head of version 2 (old)"),
        ("all old", "it still holds embedding, head of version 2 (old)"),
        ("stale prefix cache", "it goes on with a prefix cache that older weights computed"),
        ("half update, numeric", "(numeric): a part of the new weights did not arrive"),
    ],
)
def test_what_goes_wrong_with_an_update_is_named(fault: str, message: str, tmp_path: Path) -> None:
    server = FakeServer("tiny")
    strikes: dict[str, Callable[[], object]] = {
        "wrong version": relabels(server),
        "tensor lost in memory": lambda: server.faults.update(agentrl_digests=lambda: lost(server)),
        "old tensor": lambda: setattr(server, "stays", HEAD),
        "all old": lambda: setattr(server, "stays", (*HEAD, "embedding")),
        "stale prefix cache": lambda: setattr(server, "salts", False),
        "half update, numeric": lambda: setattr(server, "stays", HEAD),
    }
    if fault == "half update, numeric":
        server.inability = "its weights are quantised (awq)"
    weights = FakeWeights(STEPS, lacks=HEAD if fault == "missing tensor" else ())
    assert message in told(server, tmp_path, weights, lambda: strikes.get(fault, lambda: None)())


def lost(server: FakeServer) -> object:
    answer = FakeServer.agentrl_digests(server)
    del answer["results"][0]["tensors"]["head"]
    return answer
