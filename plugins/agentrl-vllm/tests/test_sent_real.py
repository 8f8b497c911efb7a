"""Weights that are sent to real servers tensor by tensor: exact, whole or not at all, and there again after a loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lending import Owner, lent_backend
from real import KEYS, START_S
from servers import kill_workers

from agentrl.errors import BackendError
from agentrl.testing.backends.bench import Bench, started_bench
from agentrl.testing.parts import model_folder

pytestmark = pytest.mark.real

EXACT = 1e-4


@pytest.fixture(scope="module")
def served() -> Iterator[Bench]:
    owner = Owner()

    def build(folder: Path) -> object:
        return lent_backend({**KEYS, "transfer": "stream", "replicas": 1}, folder, owner.lend)

    with started_bench(build, model_folder("tiny"), timeout=START_S, start_timeout=START_S) as table:
        owner.bench = table
        yield table


def exact(served: Bench) -> None:
    """The server has the reference's weights, whole, and says so of its own memory."""
    for compared in served.sample(max_tokens=8):
        assert set(compared.chunk.versions) == {served.reference.version}
        assert compared.off_by < EXACT
    held = served.run(served.backend.held_weights())
    assert held.version == served.reference.version
    assert held.tensors is not None, held.inability
    with served.reference.weights as weights:
        own = weights.digests({name: each.dtype for name, each in held.tensors.items()})
    assert {name: own[name] for name in held.tensors} == dict(held.tensors)


def test_new_weights_come_without_a_folder(served: Bench, tmp_path: Path) -> None:
    folder = served.backend._running.weights.open()
    exact(served)
    for _ in range(2):
        served.update()
        exact(served)
    assert not list(folder.glob("v*"))
    size = sum(parameter.nbytes for parameter in served.reference.model.parameters())
    with served.reference.weights as weights:
        assert served.run(served.backend.update_weights(weights)) == size


def test_zeros_keep_their_sign(served: Bench) -> None:
    new = served.reference.changed()
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.view(-1)[:4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    served.update(new)
    exact(served)


class Renamed:
    """Weights with a tensor too few."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights
        self.version = weights.version
        self.adapter = None

    def names(self) -> list[str]:
        return list(self._weights.names())[1:]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)


def test_weights_that_do_not_fit_reach_no_generation(served: Bench) -> None:
    with served.reference.changed().weights as weights, pytest.raises(BackendError, match="the new weights lack"):
        served.run(served.backend.update_weights(Renamed(weights)))
    exact(served)


def test_a_server_that_is_killed_is_sent_the_newest_weights_again(served: Bench) -> None:
    served.update()
    kill_workers()
    exact(served)
    served.update()
    exact(served)
