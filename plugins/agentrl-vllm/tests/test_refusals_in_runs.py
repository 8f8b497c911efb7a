"""What stops a run, and says why: before it has begun, or with all that was learned and rolled out kept."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from real import KEYS
from servers import fake_server
from servers import run as complete
from training_runs import VLLM, Run, run, untrained_model

from agentrl.errors import AgentRLError, BackendError, PluginError
from agentrl.inference.contract import Weights
from agentrl_vllm.folders import WeightFolders
from agentrl_vllm.server import Server

pytestmark = pytest.mark.real

BRIEF = ("tasks.eval=null", "rollout.tasks_per_step=2", "training.checkpoint_every=0", "training.steps=3")
A_STEP = 16
"""Episodes."""


def stopped(ended: Run, error: type[AgentRLError], message: str) -> None:
    """The run has ended by ``error``, and its summary says so on one line."""
    assert isinstance(ended.error, error)
    assert message in ended.error.message
    assert ended.summary.outcome == f"failed: {ended.error}"
    assert "\n" not in ended.summary.outcome


def samples_under(real_server: Server) -> str:
    """The version that a server, which goes on, samples under."""
    request = {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 4, "ignore_eos": True}}
    answer = httpx.post(f"{real_server.url}/inference/v1/generate", json=request, timeout=60, trust_env=False)
    (span,) = answer.json()["choices"][0]["weight_versions"]
    return str(span["version"])


def cut_short(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """The weights of ``version`` arrive cut short."""
    write = WeightFolders.write

    def spoiled(folders: WeightFolders, weights: Weights) -> Path:
        folder = write(folders, weights)
        if weights.version == version:
            file = folder / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-100])
        return folder

    monkeypatch.setattr(WeightFolders, "write", spoiled)


def test_weights_that_no_server_can_load_stop_the_run_and_reach_none(
    real_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_short(monkeypatch, version=2)
    ended = run(tmp_path / "run", "math", {"name": VLLM, "urls": [real_server.url]}, *BRIEF)
    stopped(ended, BackendError, "the new weights do not fit the model of the server at ")
    assert ended.once_each
    assert len(ended.episodes) == 2 * A_STEP
    assert ended.summary.steps == 2
    assert (Path(str(ended.summary.checkpoint)) / "model.safetensors").exists()
    assert samples_under(real_server) == "1"


def test_a_server_of_another_model_is_refused_before_anything_is_sampled(
    real_server: Server, tiny_model: Path, tmp_path: Path
) -> None:
    before = samples_under(real_server)
    other = untrained_model(tiny_model, tmp_path / "other", layers=3)
    ended = run(tmp_path / "run", "math", {"name": VLLM, "urls": [real_server.url]}, f"model={other}", *BRIEF)
    stopped(ended, BackendError, "the model has no model.layers.2.")
    assert not ended.episodes
    assert samples_under(real_server) == before


def test_a_server_that_a_killed_run_has_left_paused_goes_on(real_server: Server, tmp_path: Path) -> None:
    httpx.post(f"{real_server.url}/pause?mode=keep", timeout=60, trust_env=False).raise_for_status()
    ended = run(tmp_path / "run", "math", {"name": VLLM, "urls": [real_server.url]}, *BRIEF)
    assert ended.error is None
    assert ended.once_each
    assert ended.exact


def test_a_version_that_is_too_old_is_refused(tmp_path: Path) -> None:
    answers = {"/version": [200, {"version": "0.11.0"}], "/inference/v1/generate": [404, {}]}
    old = fake_server(tmp_path / "log", answers=answers)
    complete(old.start())
    try:
        ended = run(tmp_path / "run", "math", {"name": VLLM, "urls": [old.url]}, *BRIEF)
    finally:
        old.kill()
    stopped(ended, PluginError, "is vLLM 0.11.0, which is too old")
    assert not ended.episodes


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(tmp_path / "run", "math", {"name": VLLM, **KEYS, "port": port}, *BRIEF)
    stopped(ended, BackendError, f"cannot listen on port {port}: it is taken")
    assert "set inference.backend.port" in str(ended.error)
    assert not ended.episodes
