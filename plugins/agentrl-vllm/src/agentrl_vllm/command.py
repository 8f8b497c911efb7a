"""The command that starts a server: its flags, the size of its KV cache, its environment, and the code it is given."""

from __future__ import annotations

import inspect
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from agentrl import ConfigError, tensor_digest, worker_environment
from agentrl.inference.contract import AdapterContext
from agentrl_vllm.gpus import count_gpus, gpu_bytes
from agentrl_vllm.guard import KEY
from agentrl_vllm.installation import Installation
from agentrl_vllm.settings import VllmSettings, flag_of

__all__ = ["Command", "ServingCommand", "Shape", "kv_cache_bytes", "longest_context", "server_environment", "shape_of"]

_HARMLESS = ("NCCL_*", "GLOO_*", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

_NEEDED = {
    # The endpoints that take new weights.
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # The model is a local folder.
    "HF_HUB_OFFLINE": "1",
    # A connection that the server closes as a request is on its way looks like a server that is lost.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "86400",
    # On a CPU: the operating system shares the cores among replicas and trainer.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def server_environment(listed: Sequence[str], environ: Mapping[str, str], python: Path) -> dict[str, str]:
    """Returns the environment of a server that ``python`` runs: harmless variables of ``environ``, and ``listed`` ones.

    Raises ``ConfigError`` for an entry of ``listed`` that is neither ``NAME=value`` nor ``NAME`` of a variable here.
    """
    more = {name: value for name, value in environ.items() if any(fnmatchcase(name, each) for each in _HARMLESS)}
    ours = {**_NEEDED, "TORCHINDUCTOR_CACHE_DIR": _compiled()}
    return {**worker_environment((), environ, python=python), **ours, **more, **dict(_listed(listed, environ))}


def _compiled() -> str:
    """The folder of torch's compiled code: outside the server's own folder, so that the next server finds it."""
    return str(Path(tempfile.gettempdir()) / f"agentrl-torchinductor-{os.getuid()}")


def _listed(entries: Sequence[str], environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        name, given, value = entry.partition("=")
        if name.split() != [name] or "\0" in entry:
            raise ConfigError(
                f"inference.backend.env holds {entry!r}, which names no variable", fix="write NAME or NAME=value"
            )
        if not given and name not in environ:
            raise ConfigError(
                f"inference.backend.env lists {name!r}, which is not set here",
                fix=f"set {name} before you start, or write {name}=value",
            )
        yield name, value if given else environ[name]


_LEAST = 64 * 2**20
_UNKNOWN = 2**30
"""Bytes of KV cache for a model whose config does not say how much a token takes."""
_LONGEST = 32768
"""Most tokens of a sequence by default: what some configs promise would take all of the memory."""
_BLOCK = 128
"""Tokens of a block of the KV cache; a sequence takes whole blocks."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes in a model's config; ``None`` where it has no key of the usual name."""

    context_length: int | None
    """How many positions the model knows."""
    elements: int | None
    """How many numbers the KV cache holds per token."""


def shape_of(model_folder: Path) -> Shape:
    """Returns the sizes in ``model_folder``'s config. Raises ``OSError`` or ``ValueError`` where it is broken."""
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    longest = config.get("max_position_embeddings")
    return Shape(longest if isinstance(longest, int) else None, _elements(config))


def kv_cache_bytes(shape: Shape, sequences: int, element_bytes: int) -> int:
    """Returns the bytes of KV cache for ``sequences`` of the full context, at most a quarter of the memory."""
    if shape.elements is None or shape.context_length is None:
        wanted = _UNKNOWN
    else:
        blocks = (sequences + 1) * -(-min(shape.context_length, _LONGEST) // _BLOCK)
        wanted = blocks * _BLOCK * shape.elements * element_bytes
    return min(max(wanted, _LEAST), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


def longest_context(shape: Shape, size: int, element_bytes: int) -> int | None:
    """Returns the tokens of the longest sequence for a cache of ``size`` bytes; ``None`` where only vLLM can tell."""
    if shape.context_length is None:
        return None
    fits = shape.context_length if shape.elements is None else size // (shape.elements * element_bytes)
    return min(shape.context_length, _LONGEST, fits // _BLOCK * _BLOCK or fits)


def _elements(config: dict[str, Any]) -> int | None:
    try:
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        return int(2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * size)
    except (KeyError, TypeError):
        return None


_GIVEN = ("extension", "memory", "patches", "stream", "cuda", "guard")
"""The modules of this package that run in the server, as ``agentrl_vllm_<name>``: they import only each other, and
``agentrl_vllm_digests``, which is agentrl's own."""

_DISTRIBUTION = {
    "METADATA": "Metadata-Version: 2.1\nName: agentrl-vllm-given\nVersion: 0\n",
    "entry_points.txt": "[vllm.general_plugins]\nagentrl_patches = agentrl_vllm_patches:stop_spinning\n",
}
"""The metadata that makes them a distribution with a vLLM plugin, which vLLM loads in all of its processes."""

_FIXED = (
    "--enable-scale-out",
    *("--worker-extension-cls", "agentrl_vllm_extension.WorkerExtension"),
    # What a request does not say is not taken from the model's folder.
    *("--generation-config", "vllm"),
    *("--logprobs-mode", "processed_logprobs"),
    # As many as clients may ask for, and the token that was drawn.
    *("--max-logprobs", "21"),
    "--disable-uvicorn-access-log",
)
_BATCHED_TOKENS = 2048
"""Prompt tokens of a step on a CPU, where a prompt must fit in one step."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The greatest ranks that a server can be told."""
_ADAPTERS = 4
"""Adapters that are sampled with at once: the newest, and older ones that requests under way have begun with. Requests
with further ones wait until one of those has ended."""
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments, and its whole environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServingCommand:
    """The command of one replica, without its model folder and its port."""

    installation: Installation
    settings: VllmSettings
    environ: Mapping[str, str]
    """The environment from ``server_environment``."""
    replica: int
    """The replica's number, from 0."""
    sequences: int
    """How many completions it samples at once; further requests wait."""
    adapter: AdapterContext | None = None
    """What adapters it is to take; ``None`` where it takes none."""
    address: str = "127.0.0.1"
    """The address that it listens at."""
    is_placed: bool = False
    """Whether its GPUs are those that a scheduler has given it, in ``environ``."""
    memory: int | None = None
    """Bytes of the GPU's memory that it may take, where the learner has the rest; ``None`` for what vLLM takes."""

    def __post_init__(self) -> None:
        """Raises ``ConfigError`` for GPUs that a CPU build cannot use, or that are not there, for replicas that would
        share a GPU, and for a rank that no vLLM takes."""
        if self.settings.colocate and self.installation.is_cpu:
            raise ConfigError(
                f"inference.backend.colocate=true needs vLLM's sleep mode, which needs CUDA, and vLLM in "
                f"{self.installation.python} is a build for CPUs",
                fix="leave it out: on a CPU learner and servers have the memory together",
                key="inference.backend.colocate",
            )
        if self.adapter is not None and self.adapter.rank > _RANKS[-1]:
            raise ConfigError(
                f"training.lora.rank={self.adapter.rank} is more than vLLM takes", fix=f"set it to at most {_RANKS[-1]}"
            )
        if self.settings.devices and self.installation.is_cpu:
            raise ConfigError(
                f"inference.backend.devices names GPUs, and vLLM in {self.installation.python} is a build for CPUs",
                fix="leave it out, or set inference.backend.python to a build for GPUs",
            )
        if not self.installation.is_cpu and not self.is_placed:
            self._check_gpus()
        if self.settings.replicas > 1 and not (self.settings.devices or self.installation.is_cpu or self.is_placed):
            raise ConfigError(
                f"{self.settings.replicas} replicas would all take the memory of the same GPU",
                fix='set inference.backend.devices, one entry a replica, such as ["0", "1"]',
            )

    def _check_gpus(self) -> None:
        """Raise ``ConfigError`` where the replica is to be split over more GPUs than there are."""
        wanted, there = self.settings.gpus, count_gpus(self.environ)
        if there is not None and wanted > there:
            raise ConfigError(
                f"inference.backend.tensor_parallel={wanted} splits a replica over {wanted} GPUs, and there "
                f"{'is' if there == 1 else 'are'} {there}",
                fix=f"set it to at most {there}" if there else "sample on a machine with GPUs",
                key="inference.backend.tensor_parallel",
            )

    def build(self, model_folder: Path, port: int, scratch: Path) -> Command:
        """Returns the command that serves ``model_folder`` on ``port``; ``scratch`` is an empty folder for it."""
        code, temporary = scratch / "code", scratch / "tmp"
        code.mkdir()
        temporary.mkdir()
        # Alone in a folder: what is beside it here is for our interpreter, not for the server's.
        texts = {name: (files("agentrl_vllm") / f"{name}.py").read_text(encoding="utf-8") for name in _GIVEN}
        texts["digests"] = Path(inspect.getfile(tensor_digest)).read_text(encoding="utf-8")
        for name, text in texts.items():
            (code / f"agentrl_vllm_{name}.py").write_text(text, encoding="utf-8")
        known = code / "agentrl_vllm_given-0.dist-info"
        known.mkdir()
        for name, text in _DISTRIBUTION.items():
            (known / name).write_text(text, encoding="utf-8")
        path = ":".join(filter(None, [str(code), self.environ.get("PYTHONPATH")]))
        adapting = {} if self.adapter is None else {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        visible = {} if self._devices is None else {"CUDA_VISIBLE_DEVICES": self._devices}
        return Command(
            (
                str(self.installation.python),
                "-m",
                "vllm.entrypoints.openai.api_server",
                *self._flags(model_folder, port),
            ),
            # What lies in the current folder, such as an `openai.py`, is no module of the server's.
            {
                **self.environ,
                **adapting,
                "PYTHONPATH": path,
                "PYTHONSAFEPATH": "1",
                "TMPDIR": str(temporary),
                **visible,
            },
        )

    @property
    def _devices(self) -> str | None:
        return self.settings.devices[self.replica] if self.settings.devices else None

    @property
    def _workers(self) -> int:
        return self.settings.tensor_parallel or (len(self._devices.split(",")) if self._devices else 1)

    @property
    def _dtype(self) -> str:
        if self.settings.dtype != "auto":
            return self.settings.dtype
        return "float32" if self.installation.is_cpu else "bfloat16"

    def _flags(self, model_folder: Path, port: int) -> Iterator[str]:
        """The flags, those of the user last: vLLM takes the last value of a flag."""
        yield from ("--model", str(model_folder.absolute()))
        yield from ("--host", self.address, "--port", str(port))
        yield from ("--dtype", self._dtype, "--max-num-seqs", str(self.sequences))
        yield from _FIXED
        if self.adapter is not None:
            least = self.adapter.rank
            rank = next(each for each in _RANKS if each >= least)
            yield from ("--enable-lora", "--max-lora-rank", str(rank))
            yield from ("--max-loras", str(_ADAPTERS), "--max-cpu-loras", str(2 * _ADAPTERS))
            if self.adapter.targets:  # On a CPU a head that may be adapted ends the engine at prompt logprobs.
                yield from ("--lora-target-modules", *self.adapter.targets)
        if KEY in self.environ:
            yield from ("--middleware", "agentrl_vllm_guard.Guard")
        if self._workers > 1:
            yield from ("--tensor-parallel-size", str(self._workers))
        if self.settings.colocate:
            yield "--enable-sleep-mode"
        elif not self.installation.is_cpu and self.settings.transfer in ("auto", "nccl"):
            yield from ("--weight-transfer-config", json.dumps({"backend": "nccl"}))
        if self.installation.is_cpu:
            yield from self._flags_on_cpu(model_folder)
        elif self.settings.kv_cache_bytes is not None:
            yield from ("--kv-cache-memory-bytes", str(self.settings.kv_cache_bytes))
        elif self.memory is not None and (whole := gpu_bytes(self.environ)):
            yield from ("--gpu-memory-utilization", f"{min(self.memory / whole, 0.95):.3f}")
        yield from self.settings.args

    def _flags_on_cpu(self, model_folder: Path) -> Iterator[str]:
        shape, element_bytes = shape_of(model_folder), _ELEMENT_BYTES[self._dtype]
        size = self.settings.kv_cache_bytes or kv_cache_bytes(shape, self.sequences, element_bytes)
        yield from ("--kv-cache-memory-bytes", str(size))
        # Compiling for a CPU takes minutes.
        yield "--enforce-eager"
        # A seeded request whose prompt is cut in chunks ends the engine there, so that prompts have to fit whole.
        yield "--no-enable-chunked-prefill"
        longest = self._given("--max-model-len") or longest_context(shape, size, element_bytes)
        if longest is not None:
            yield from ("--max-model-len", str(longest))
            yield from ("--max-num-batched-tokens", str(max(longest, self.sequences, _BATCHED_TOKENS)))

    def _given(self, flag: str) -> int | None:
        """The number that the user gives for a flag, if any."""
        words = list(chain.from_iterable(_words(arg) for arg in self.settings.args))
        values = [after for name, after in pairwise(words) if name == flag]
        return _number(values[-1]) if values else None


def _words(arg: str) -> tuple[str, ...]:
    """A flag and its value where both are in ``arg``; otherwise the flag or the value alone."""
    if not arg.startswith("--"):
        return (arg,)
    _, given, value = arg.partition("=")
    return (flag_of(arg), value) if given else (flag_of(arg),)


def _number(text: str) -> int | None:
    """A number as vLLM reads it: ``4k`` is 4,000 and ``4K`` is 4,096; ``None`` for any other text, such as ``auto``."""
    if (found := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", text.strip())) is None:
        return None
    amount, unit = found.groups()
    base = 1000 if unit.islower() else 1024
    return int(float(amount) * base ** " kmgt".index(unit.lower() or " "))
