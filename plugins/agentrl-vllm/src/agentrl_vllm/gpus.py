"""The GPUs of this machine, as ``nvidia-smi`` tells of them: the process of a run need not have CUDA itself."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from functools import cache

__all__ = ["count_gpus", "find_cuda", "gpu_bytes"]

_ANSWER_S = 30.0


@cache
def _memories() -> tuple[int, ...] | None:
    """The bytes of each GPU; ``None`` where that cannot be told."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    question = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(question, capture_output=True, text=True, timeout=_ANSWER_S, check=True)  # noqa: S603
        return tuple(int(line) * 2**20 for line in told.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def find_cuda() -> bool:
    """Returns whether this machine has an NVIDIA GPU."""
    return bool(_memories())


def count_gpus(environ: Mapping[str, str]) -> int | None:
    """Returns how many GPUs a process with ``environ`` sees; ``None`` where that cannot be told."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    memories = _memories()
    return None if memories is None else len(memories)


def gpu_bytes(environ: Mapping[str, str]) -> int | None:
    """Returns the bytes of memory of the first GPU that a process with ``environ`` sees; ``None`` where not known."""
    memories = _memories()
    if not memories:
        return None
    first = environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return memories[int(first)] if first.isdecimal() and int(first) < len(memories) else memories[0]
