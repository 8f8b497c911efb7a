"""The settings of the backend ``vllm``: the keys beside its name in a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, Strict, field_validator, model_validator

from agentrl import Settings

__all__ = ["VllmSettings", "flag_of"]

_OF_STARTED_SERVERS = (
    "python",
    "replicas",
    "devices",
    "dtype",
    "args",
    "env",
    "kv_cache_bytes",
    "port",
    "tensor_parallel",
    "colocate",
)

_OURS = {
    "--model": "model",
    "--dtype": "inference.backend.dtype",
    "--port": "inference.backend.port",
    "--tensor-parallel-size": "inference.backend.tensor_parallel",
    "-tp": "inference.backend.tensor_parallel",
    "--weight-transfer-config": "inference.backend.transfer",
    "--enable-sleep-mode": "inference.backend.colocate",
    "--middleware": None,
    "--kv-cache-memory-bytes": "inference.backend.kv_cache_bytes",
    "--host": None,
    "--uds": None,
    "--api-key": None,
    "--served-model-name": None,
    "--enable-scale-out": None,
    "--logprobs-mode": None,
    "--generation-config": None,
    "--worker-extension-cls": None,
    "--enable-lora": None,
    "--max-lora-rank": "training.lora.rank",
}
"""Flags of the server that agentrl decides, with the key that sets each, if there is one."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def flag_of(arg: str) -> str:
    """Returns the name of the flag in ``arg``, with dashes, without a value."""
    return arg.partition("=")[0].replace("_", "-")


class VllmSettings(Settings):
    """The keys beside ``inference.backend.name: vllm``."""

    python: Annotated[Path | None, Strict(False)] = None
    """The interpreter that runs vLLM; null for that of the environment `vllm`, which `agentrl env create vllm`
    makes, or for this one where vLLM is installed here."""
    urls: list[str] = Field([])
    """Servers that run already, such as `http://gpu-1:8000`, instead of ones that are started. They see
    `weights_dir` under the same path."""
    api_key_env: str | None = None
    """The environment variable that holds the key which `urls` ask for; null where they ask for none."""
    replicas: int = Field(1, ge=1)
    """How many servers are started."""
    devices: list[str] = Field([])
    """What each replica sees as `CUDA_VISIBLE_DEVICES`, one entry a replica, such as `["0,1", "2,3"]`: one with
    several devices splits the model over them. Empty to leave it to vLLM."""
    tensor_parallel: int | None = Field(None, ge=1)
    """Over how many GPUs each replica splits the model; null for as many as its entry of `devices` names, else 1. A
    scheduler with several machines places a replica's GPUs together on one of them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations; `auto` is bfloat16 on CUDA and float32 on CPU."""
    kv_cache_bytes: int | None = Field(None, ge=1)
    """Bytes of KV cache of a replica; null for what vLLM finds free on a GPU, and on a CPU for what the run's
    concurrency can use, at most a quarter of the memory."""
    args: list[str] = Field([])
    """More flags for the server, such as `["--max-model-len", "8192"]`."""
    env: list[str] = Field([])
    """Environment variables that a server gets beside harmless ones such as PATH: `NAME` inherits this process's,
    `NAME=value` sets it."""
    port: int = Field(0, ge=0, le=65535)
    """Where the first replica listens, on the loopback interface, each further one a port higher; 0 for any that are
    free."""
    start_timeout: float = Field(570, gt=0)
    """Seconds until a server has to be ready: started, given its weights, and asked for its first tokens. Less than
    `inference.timeout`; by default at most 0.95 of that."""
    request_timeout: float = Field(600, gt=0)
    """Seconds that a server may be silent at a request. Whether it hangs is asked of its engine."""
    transfer: Literal["auto", "folder", "stream", "ipc", "nccl"] = "auto"
    """How new weights get to the servers. `folder`: by a folder that they see, in shared memory by default. `stream`:
    tensor by tensor from where they are, through shared memory, or a connection to another machine. `ipc`: through a
    buffer on the GPU that both are on. `nccl`: by vLLM's own weight transfer between GPUs. `auto`: `ipc` on one GPU,
    `nccl` between GPUs, `stream` to servers on other machines, else `folder`."""
    colocate: bool = False
    """Whether the servers and the learner take turns on one GPU: the servers sleep while the learner steps, and its
    optimiser's states are in the CPU's memory else. `rollout.max_staleness` is 0 then."""
    weights_dir: Annotated[Path | None, Strict(False)] = None
    """Where new weights are handed over; null for `/dev/shm` where that is, else the folder for temporary files."""

    @property
    def gpus(self) -> int:
        """Over how many GPUs the first replica is split."""
        return self.tensor_parallel or (len(self.devices[0].split(",")) if self.devices else 1)

    @field_validator("args")
    @classmethod
    def _leaves_ours(cls, args: list[str]) -> list[str]:
        for flag in map(flag_of, args):
            if flag in _OURS:
                key = _OURS[flag]
                raise ValueError(f"{flag} is not yours to give: " + (f"set {key}" if key else "agentrl decides it"))
        return args

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = urlsplit(url)
            if "@" in parts.netloc:
                raise ValueError("an address should hold no user and no password: api_key_env is for what it asks for")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(f"{url!r} is no address: write it as http://host:port")
        cleaned = [url.rstrip("/").removesuffix("/v1") for url in urls]
        if len(set(cleaned)) < len(cleaned):
            raise ValueError("an address is there twice")
        return cleaned

    @field_validator("api_key_env")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        """The error does not repeat the value, because some write the key itself there."""
        if name is not None and not _VARIABLE.fullmatch(name):
            raise ValueError("should be the name of an environment variable, not a key")
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> VllmSettings:
        if self.urls and (idle := [key for key in _OF_STARTED_SERVERS if key in self.model_fields_set]):
            raise ValueError(f"{', '.join(idle)} cannot change servers that run already: leave out these or urls")
        if self.api_key_env and not self.urls:
            raise ValueError("api_key_env is for servers that run already: leave it out, or set urls")
        if self.devices and len(self.devices) != self.replicas:
            raise ValueError(f"devices has {len(self.devices)} entries for {self.replicas} replicas: one a replica")
        counts = {len(each.split(",")) for each in self.devices}
        if self.tensor_parallel is not None and counts - {self.tensor_parallel}:
            raise ValueError(
                f"tensor_parallel is {self.tensor_parallel}, and devices names {', '.join(map(str, sorted(counts)))} "
                "GPUs a replica: leave one out, or have them agree"
            )
        if self.colocate and self.replicas > 1:
            raise ValueError(f"colocate is for one GPU, and {self.replicas} replicas would share it: set replicas=1")
        if self.colocate and self.gpus > 1:
            raise ValueError(f"colocate is for one GPU, and the model is split over {self.gpus}: leave one out")
        if self.transfer == "ipc" and not self.colocate:
            raise ValueError("transfer: ipc is for servers on the learner's GPU: set colocate: true, or leave it out")
        if self.port and self.port + self.replicas > 65536:
            raise ValueError(f"there are no {self.replicas} ports from {self.port} on")
        return self
