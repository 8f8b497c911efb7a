"""The command line of a server: what the settings, the machine and the model make of it."""

from __future__ import annotations

import json
from importlib.metadata import distributions
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agentrl.errors import ConfigError
from agentrl_vllm.command import Command, ServingCommand, Shape, kv_cache_bytes, shape_of
from agentrl_vllm.installation import Installation
from agentrl_vllm.settings import VllmSettings

CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def built(model: Path, *, is_cpu: bool = True, replica: int = 0, **settings: Any) -> Command:
    scratch = model.parent / "scratch"
    scratch.mkdir()
    installation = Installation(Path("/vllm/python"), "0.32.0", is_cpu)
    serving = ServingCommand(installation, VllmSettings(**settings), {"PYTHONPATH": "/mine"}, replica, sequences=8)
    return serving.build(model, 8000, scratch)


def value(command: Command, flag: str) -> str | None:
    """What counts of a flag: the last that is given of it."""
    words = [word for arg in command.argv for word in arg.replace("--max_model_len", "--max-model-len").split("=")]
    values = [after for name, after in pairwise(words) if name == flag]
    return values[-1] if values else None


def test_it_serves_the_model_to_this_machine_alone(model: Path) -> None:
    command = built(model)
    assert command.argv[:3] == ("/vllm/python", "-m", "vllm.entrypoints.openai.api_server")
    assert value(command, "--model") == str(model)
    assert (value(command, "--host"), value(command, "--port")) == ("127.0.0.1", "8000")
    assert "--enable-scale-out" in command.argv


def test_a_cpu_gets_whole_prompts_and_as_much_cache_as_the_run_can_use(model: Path) -> None:
    command = built(model)
    assert value(command, "--dtype") == "float32"
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(command.argv)
    assert value(command, "--max-num-batched-tokens") == "2048"
    assert value(command, "--kv-cache-memory-bytes") == str(64 * 2**20)


def test_a_gpu_gets_vllms_own_defaults(model: Path) -> None:
    command = built(model, is_cpu=False)
    assert value(command, "--dtype") == "bfloat16"
    assert not {"--enforce-eager", "--no-enable-chunked-prefill", "--kv-cache-memory-bytes"} & set(command.argv)


def test_what_is_set_counts(model: Path) -> None:
    command = built(model, dtype="float16", kv_cache_bytes=2**30, args=["--max-num-batched-tokens", "64"])
    assert value(command, "--dtype") == "float16"
    assert value(command, "--kv-cache-memory-bytes") == str(2**30)
    assert value(command, "--max-num-batched-tokens") == "64"


def test_a_replica_sees_its_devices_and_is_split_over_them(model: Path) -> None:
    command = built(model, is_cpu=False, replica=1, replicas=2, devices=["0,1", "2,3"])
    assert command.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert value(command, "--tensor-parallel-size") == "2"


def test_devices_are_refused_where_vllm_is_a_build_for_cpus(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"devices names GPUs, and vLLM in /vllm/python is a build for CPUs"):
        built(model, devices=["0"])


def test_replicas_that_would_share_a_gpu_are_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 replicas would all take the memory of the same GPU .*\[\"0\", \"1\"\]"):
        built(model, is_cpu=False, replicas=2)


def test_replicas_share_a_cpu(model: Path) -> None:
    assert value(built(model, replica=1, replicas=2), "--port") == "8000"


@pytest.mark.parametrize(
    ("settings", "longest", "batched"),
    [
        ({}, "1024", "2048"),
        ({"args": ["--max-model-len", "512"]}, "512", "2048"),
        ({"args": ["--max-model-len=4096"]}, "4096", "4096"),
        ({"args": ["--max_model_len", "4k"]}, "4k", "4000"),
        ({"args": ["--max_model_len=4K"]}, "4K", "4096"),
        ({"args": ["--max-model-len", "2.5k"]}, "2.5k", "2500"),
        ({"args": ["--max-model-len", "auto"]}, "auto", "2048"),
        # 1,024 bytes a token: 300 of them, in whole blocks.
        ({"kv_cache_bytes": 300 * 1024}, "256", "2048"),
    ],
)
def test_on_a_cpu_the_longest_prompt_fits_the_cache_and_a_step(
    model: Path, settings: dict[str, Any], longest: str, batched: str
) -> None:
    command = built(model, **settings)
    assert value(command, "--max-model-len") == longest
    assert value(command, "--max-num-batched-tokens") == batched


def test_the_server_sees_a_few_modules_of_ours_and_no_package_of_this_interpreter(model: Path) -> None:
    command = built(model)
    code, mine = map(Path, command.env["PYTHONPATH"].split(":"))
    assert mine == Path("/mine")
    assert sorted(path.name for path in code.glob("*.py")) == [
        f"agentrl_vllm_{name}.py" for name in ("cuda", "digests", "extension", "guard", "memory", "patches", "stream")
    ]
    (known,) = (each for each in distributions(path=[str(code)]))
    assert [(each.group, each.value) for each in known.entry_points] == [
        ("vllm.general_plugins", "agentrl_vllm_patches:stop_spinning")
    ]
    assert Path(command.env["TMPDIR"]).parent == code.parent


def test_the_cache_of_a_cpu_fits_the_model_and_the_machine() -> None:
    assert kv_cache_bytes(Shape(1024, 256), sequences=64, element_bytes=4) == 65 * 1024 * 256 * 4
    assert kv_cache_bytes(Shape(2**40, 2**20), sequences=64, element_bytes=4) < 2**45
    assert kv_cache_bytes(Shape(None, None), sequences=64, element_bytes=4) <= 2**30


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (CONFIG, Shape(1024, 256)),
        ({"text_config": CONFIG}, Shape(1024, 256)),
        ({"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64}, Shape(None, 128)),
        ({"n_layer": 3}, Shape(None, None)),
    ],
)
def test_the_shape_is_read_from_the_config(tmp_path: Path, config: dict[str, Any], shape: Shape) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of(tmp_path) == shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"args": ["--port=3"]}, "--port is not yours to give: set inference.backend.port"),
        ({"args": ["--served_model_name", "x"]}, "--served-model-name is not yours to give: agentrl decides it"),
        ({"urls": ["gpu-1:8000"]}, "'gpu-1:8000' is no address: write it as http://host:port"),
        ({"urls": ["http://a/v1/", "http://a"]}, "an address is there twice"),
        ({"urls": ["http://me:secret@a"]}, "an address should hold no user and no password"),
        ({"urls": ["http://a?key=1"]}, "is no address: write it as http://host:port"),
        ({"api_key_env": "VLLM_KEY"}, "api_key_env is for servers that run already"),
        ({"urls": ["http://a"], "api_key_env": "sk-1"}, "should be the name of an environment variable, not a key"),
        ({"urls": ["http://a"], "port": 3, "env": ["A=1"]}, "env, port cannot change servers that run already"),
        ({"replicas": 2, "devices": ["0"]}, "devices has 1 entries for 2 replicas: one a replica"),
        ({"replicas": 3, "port": 65534}, "there are no 3 ports from 65534 on"),
        ({"replica": 2}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        VllmSettings.model_validate(settings)
    assert message in str(caught.value)
