"""How a server is started: its command line, its environment and the folder that it keeps its temporary files in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from agentrl_vllm.server.installation import Installation
from agentrl_vllm.server.memory import kv_cache_bytes
from agentrl_vllm.settings import VllmSettings

__all__ = ["MODEL", "Command", "serving_command"]

MODEL = "policy"
"""What a server that we start calls the model, whichever folder it has it from."""

_EXTENSION = "agentrl_vllm_extension"


@dataclass(frozen=True, slots=True)
class Command:
    """A program that serves on the loopback interface."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def serving_command(
    installation: Installation,
    settings: VllmSettings,
    environ: Mapping[str, str],
    *,
    model_folder: Path,
    replica: int,
    port: int,
    sequences: int,
    scratch: Path,
) -> Command:
    """The command line of replica number ``replica`` on ``port``, which samples at most ``sequences`` at once.

    ``environ`` is what ``server_environment`` returned; ``scratch`` an empty folder of the server's own.
    """
    code, temporary = scratch / "code", scratch / "tmp"
    code.mkdir()
    temporary.mkdir()
    # Alone in a folder: whatever else is beside it here is for our interpreter, not for the server's.
    extension = files("agentrl_vllm") / "extension.py"
    (code / f"{_EXTENSION}.py").write_text(extension.read_text(encoding="utf-8"), encoding="utf-8")
    devices = settings.devices[replica] if settings.devices else None
    flags = [
        *("--model", str(model_folder.absolute()), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", _dtype(installation, settings), "--max-num-seqs", str(sequences)),
        *("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
        *("--enable-scale-out", "--worker-extension-cls", f"{_EXTENSION}.WorkerExtension"),
        "--disable-uvicorn-access-log",
        *(("--tensor-parallel-size", str(len(devices.split(",")))) if devices else ()),
        *_memory(installation, settings, model_folder, sequences),
        # Compiling for a CPU takes minutes.
        *(("--enforce-eager",) if installation.is_cpu and "--no-enforce-eager" not in settings.args else ()),
        *settings.args,
    ]
    argv = (str(installation.python), "-m", "vllm.entrypoints.openai.api_server", *flags)
    return Command(argv, _environment(environ, code, temporary, devices))


def _dtype(installation: Installation, settings: VllmSettings) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if installation.is_cpu else "bfloat16"


def _memory(installation: Installation, settings: VllmSettings, model_folder: Path, sequences: int) -> list[str]:
    size = settings.kv_cache_bytes
    if size is None and installation.is_cpu:
        element_bytes = 4 if _dtype(installation, settings) == "float32" else 2
        size = kv_cache_bytes(model_folder, sequences, element_bytes)
    return [] if size is None else ["--kv-cache-memory-bytes", str(size)]


def _environment(environ: Mapping[str, str], code: Path, temporary: Path, devices: str | None) -> dict[str, str]:
    path = ":".join(filter(None, [str(code), environ.get("PYTHONPATH")]))
    visible = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    return {**environ, "PYTHONPATH": path, "TMPDIR": str(temporary), **visible}
