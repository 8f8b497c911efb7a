"""Which way new weights go: by where learner and servers are, or as the settings say, where that can be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from agentrl.errors import ConfigError
from agentrl.inference.contract import AdapterContext, BackendContext
from agentrl_vllm import command as commands
from agentrl_vllm.backend import VllmBackend
from agentrl_vllm.installation import Installation
from agentrl_vllm.settings import VllmSettings
from agentrl_vllm.transfer import Place, choose_way

CPU, GPU = Place("cpu"), Place("cuda", "GPU-1")


def chosen(asked: str, learner: Place, server: str, *, shares: bool = False, sees: bool = True, lends: bool = True):
    described = SimpleNamespace(device=server)
    return choose_way(asked, learner, described, shares=shares, sees=sees, lends=lends)


@pytest.mark.parametrize(
    ("learner", "server", "situation", "way"),
    [
        (CPU, "cpu", {}, "folder"),
        (CPU, "cpu", {"sees": False}, "stream"),
        (CPU, "cuda", {}, "folder"),
        (GPU, "cuda", {}, "nccl"),
        (GPU, "cuda", {"sees": False}, "nccl"),
        (GPU, "cuda", {"shares": True}, "ipc"),
        (GPU, "cpu", {"sees": False}, "stream"),
        (GPU, "cuda", {"lends": False}, "folder"),
    ],
)
def test_auto_picks_by_where_both_are(learner, server, situation, way) -> None:
    assert chosen("auto", learner, server, **situation) == way


@pytest.mark.parametrize(
    ("asked", "learner", "server", "shares", "says"),
    [
        ("nccl", CPU, "cpu", False, "transfer=nccl is between GPUs: the learner is on cpu, and the server on cpu"),
        ("ipc", GPU, "cpu", True, "transfer=ipc is between GPUs: the learner is on cuda, and the server on cpu"),
        ("ipc", GPU, "cuda", False, "transfer=ipc is for a learner and a server on one GPU"),
        ("nccl", GPU, "cuda", True, "learner and server share one"),
    ],
)
def test_a_way_that_cannot_be_is_refused_with_the_reason(asked, learner, server, shares, says) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        chosen(asked, learner, server, shares=shares)
    assert raised.value.key == "inference.backend.transfer"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"transfer": "ipc"}, "ipc is for servers on the learner's GPU: set colocate: true"),
        ({"colocate": True, "replicas": 2}, "colocate is for one GPU, and 2 replicas would share it"),
        ({"colocate": True, "tensor_parallel": 2}, "colocate is for one GPU, and the model is split over 2"),
        ({"tensor_parallel": 2, "devices": ["0"]}, "tensor_parallel is 2, and devices names 1 GPUs a replica"),
        ({"urls": ["http://a:1"], "tensor_parallel": 2}, "tensor_parallel cannot change servers that run already"),
        ({"args": ["--tensor-parallel-size=2"]}, "set inference.backend.tensor_parallel"),
        ({"args": ["--weight-transfer-config", "{}"]}, "set inference.backend.transfer"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, says) -> None:
    with pytest.raises(ValidationError, match=says):
        VllmSettings.model_validate(settings)


def serving(
    *, cpu: bool, environ: dict[str, str] | None = None, placed: bool = False, memory: int | None = None, **settings
):
    installation = Installation(SimpleNamespace(), "0.32.0", cpu)
    return commands.ServingCommand(
        installation,
        VllmSettings.model_validate(settings),
        environ or {},
        0,
        sequences=8,
        is_placed=placed,
        memory=memory,
    )


def flags(command, tmp_path) -> list[str]:
    (tmp_path / "config.json").write_text("{}")
    return list(command._flags(tmp_path, 8000))


def test_a_replica_of_several_gpus_is_refused_where_they_are_not_there(monkeypatch, tmp_path) -> None:
    with pytest.raises(ConfigError, match="splits a replica over 4 GPUs, and there are 2"):
        serving(cpu=False, environ={"CUDA_VISIBLE_DEVICES": "0,1"}, tensor_parallel=4)
    monkeypatch.setattr(commands, "count_gpus", lambda environ: 0)
    with pytest.raises(ConfigError, match="splits a replica over 2 GPUs, and there are 0"):
        serving(cpu=False, tensor_parallel=2)
    monkeypatch.setattr(commands, "count_gpus", lambda environ: 2)
    made = flags(serving(cpu=False, tensor_parallel=2), tmp_path)
    assert made[made.index("--tensor-parallel-size") + 1] == "2"
    placed = flags(serving(cpu=False, placed=True, tensor_parallel=8), tmp_path)
    assert placed[placed.index("--tensor-parallel-size") + 1] == "8"


def test_a_server_is_made_ready_for_the_way_that_weights_may_come(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(commands, "count_gpus", lambda environ: 1)
    monkeypatch.setattr(commands, "gpu_bytes", lambda environ: 80_000)
    auto = flags(serving(cpu=False), tmp_path)
    assert auto[auto.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    assert "--weight-transfer-config" not in flags(serving(cpu=False, transfer="folder"), tmp_path)
    assert "--weight-transfer-config" not in flags(serving(cpu=True), tmp_path)
    shared = flags(serving(cpu=False, colocate=True, memory=40_000), tmp_path)
    assert "--enable-sleep-mode" in shared
    assert "--weight-transfer-config" not in shared
    assert shared[shared.index("--gpu-memory-utilization") + 1] == "0.500"
    with pytest.raises(ConfigError, match="colocate=true needs vLLM's sleep mode"):
        serving(cpu=True, colocate=True)


def test_a_way_that_adapters_do_not_take_is_refused(tmp_path) -> None:
    context = BackendContext(tmp_path, options={"transfer": "stream"}, adapter=AdapterContext(8))
    with pytest.raises(ConfigError, match=r"transfer=stream has no effect with training\.lora"):
        VllmBackend(context)
