"""GPUs: what torch can use of what the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from agentrl.config.models import Config
from agentrl.doctor.findings import Finding, note, ok, warning
from agentrl.doctor.memory import human
from agentrl.errors import one_line

__all__ = ["Gpu", "Gpus", "gpu_findings"]

_DRIVER_S = 20.0
"""How long a driver may take to answer."""
_HIDDEN_BY = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One that torch can use."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """What is there, as torch and as the driver see it."""

    usable: tuple[Gpu, ...] = ()
    complaint: str = ""
    """What torch says of a driver that it cannot use."""
    torch: str | None = None
    """Its version; ``None`` where it is not installed."""
    cuda: str | None = None
    """The CUDA or ROCm version that torch was built for; ``None`` for a CPU build."""
    apple: bool = False
    """Whether torch could use an Apple GPU."""
    present: tuple[str, ...] = ()
    """Names and driver versions, as NVIDIA's driver gives them."""

    def free_bytes(self, device: str) -> int | None:
        """Free memory of the one that ``training.device`` means; ``None`` where it means none of them."""
        index = device.partition(":")[2] or "0"
        usable = device != "cpu" and index.isdigit() and int(index) < len(self.usable)
        return self.usable[int(index)].free_bytes if usable else None

    @classmethod
    def seen(cls) -> Gpus:
        """Ask torch and the driver."""
        try:
            import torch
        except (ImportError, OSError):
            return cls(present=_present())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            available = torch.cuda.is_available()
        return cls(
            usable=tuple(map(_gpu, range(torch.cuda.device_count()))) if available else (),
            complaint=one_line(said[0].message) if said else "",
            torch=torch.__version__,
            cuda=torch.version.cuda or torch.version.hip,
            apple=torch.backends.mps.is_available(),
            present=() if available else _present(),
        )


def _gpu(index: int) -> Gpu:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return Gpu(torch.cuda.get_device_name(index), free, total)


def _present() -> tuple[str, ...]:
    """Empty where there is no NVIDIA driver, or where it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip().replace(",", ", driver", 1) for line in answer.stdout.splitlines() if line.strip())


def gpu_findings(gpus: Gpus, config: Config) -> Iterator[Finding]:
    """What there is, and why torch cannot use it where it cannot."""
    for index, gpu in enumerate(gpus.usable):
        yield ok(
            f"GPU {index}: {gpu.name}, {human(gpu.free_bytes)} of {human(gpu.total_bytes)} free",
            gpu=gpu.name,
            free_bytes=gpu.free_bytes,
            total_bytes=gpu.total_bytes,
        )
    if gpus.usable and config.training.device == "cpu":
        yield warning("training.device=cpu leaves the GPU idle", fix="set training.device=auto")
    if gpus.usable:
        return
    if gpus.present and gpus.torch is not None:
        yield _unused(gpus)
    elif gpus.apple:
        yield note("the Apple GPU (MPS) is not used: models are trained and sampled on the CPU")
    else:
        yield note("no GPU: models are trained and sampled on the CPU")


def _unused(gpus: Gpus) -> Finding:
    there = f"{gpus.present[0]}, is there, but torch {gpus.torch}"
    if gpus.cuda is None:
        fix = "install a CUDA build of torch: pip install --force-reinstall torch, without a constraint on a CPU build"
        return warning(f"{there} is a build for the CPU", fix=fix, present=list(gpus.present))
    hidden = os.environ.get(_HIDDEN_BY)
    if hidden is not None and not hidden.strip("-1 "):
        return warning(f"{there} does not see it: {_HIDDEN_BY}={hidden!r}", fix=f"unset {_HIDDEN_BY}")
    reason = f" ({gpus.complaint})" if gpus.complaint else ""
    return warning(
        f"{there}, built for CUDA {gpus.cuda}, cannot use it{reason}",
        fix=f"update the driver, or install a torch that was built for an older CUDA than {gpus.cuda}",
        present=list(gpus.present),
    )
