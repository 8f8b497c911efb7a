"""A server whose model is split over two workers is sent its weights by both, and holds them whole."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lending import lent_backend
from real import KEYS, START_S

from agentrl.inference.contract import Weights
from agentrl.testing.backends.bench import started_bench
from agentrl.testing.parts import model_folder

pytestmark = pytest.mark.real

EXACT = 1e-4


def test_every_worker_of_a_split_server_takes_the_weights() -> None:
    benches = []

    @contextlib.asynccontextmanager
    async def lend(borrower: str) -> AsyncIterator[Weights]:
        with benches[0].reference.weights as weights:
            yield weights

    def build(folder: Path) -> object:
        return lent_backend({**KEYS, "transfer": "stream", "tensor_parallel": 2}, folder, lend)

    with started_bench(build, model_folder("tiny"), timeout=2 * START_S, start_timeout=2 * START_S) as served:
        benches.append(served)
        for _ in range(2):
            served.update()
            for compared in served.sample(max_tokens=8):
                assert set(compared.chunk.versions) == {served.reference.version}
                assert compared.off_by < EXACT
            held = served.run(served.backend.held_weights())
            assert held.tensors is not None, held.inability
            with served.reference.weights as weights:
                own = weights.digests({name: each.dtype for name, each in held.tensors.items()})
            assert {name: own[name] for name in held.tensors} == dict(held.tensors)
        (told,) = served.backend._running.weights._told.values()
        assert told.workers == 2
