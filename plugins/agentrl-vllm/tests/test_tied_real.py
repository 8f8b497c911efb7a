"""A real server whose head is its embedding: of what it holds twice, neither half may stay old."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import begun, stopped_by
from real import KEYS, START_S

from agentrl.testing.backends.bench import build_backend, started_bench
from agentrl.testing.backends.reference import load_reference
from agentrl.testing.backends.weight_updates import tied_model
from agentrl.testing.parts import model_folder
from agentrl_vllm import control
from agentrl_vllm.client import Client

pytestmark = pytest.mark.real


async def reload(client: Client, url: str, folder: Path) -> None:
    """vLLM's own way, which leaves the copy that a kernel on a CPU has packed for the head as it is."""
    await client.post(url, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})


def test_a_head_that_is_left_old_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tied_model(load_reference(model_folder("tiny")), tmp_path / "tied")

    def build(folder: Path) -> object:
        return build_backend("agentrl_vllm.backend:VllmBackend", KEYS, folder, concurrency=8)

    with started_bench(build, folder, timeout=START_S, start_timeout=START_S) as served:  # type: ignore[arg-type]
        with served.reference.weights as weights:
            proof = served.run(begun(served.backend, weights), "the beginning of a run")
        good = served.reference.changed()
        with good.weights as weights:
            assert not served.run(stopped_by(served.backend, proof, weights), "an update")
        monkeypatch.setattr(control, "replace", reload)
        with good.changed().weights as weights:
            message = served.run(stopped_by(served.backend, proof, weights), "an update that forgets the head")
    assert "it holds lm_head.weight apart from the tensor that it is tied to, and did not renew it" in message
