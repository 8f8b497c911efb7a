"""What of the machine this process may use: CPUs, the CPU threads of torch operations, a model's device, and memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["allow_open_files", "find_device", "free_memory", "has_bfloat16_units", "human", "usable_processors"]

_CGROUP = Path("/sys/fs/cgroup")
_DEVICE_FIX = "use auto, cpu, cuda or cuda:N"


def usable_processors(cgroup: Path = _CGROUP) -> int:
    """Returns how many CPUs this process may keep busy: at least 1, at most what affinity and a container allow.

    ``cgroup`` is the folder whose ``cpu.max`` holds the container's quota; a missing file means no quota.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    processors = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        processors = min(processors, max(1, round(int(quota) / int(period))))
    return processors


def has_bfloat16_units() -> bool:
    """Returns whether the CPU multiplies matrices of bfloat16 by units of its own, as AMX and AVX512-BF16 are.

    Units are no promise of speed: AMX has many times the speed of float32, AVX512-BF16 at times less than it.
    """
    import torch

    return any(bool(has) for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def find_device(name: str, key: str) -> torch.device:
    """Returns the torch device that ``name`` means: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` is CUDA where torch finds a CUDA device, and the CPU elsewhere. ``key`` is the config key that holds the
    name, for the message. Raises ``ConfigError`` for an unknown name, a kind of device that is not supported, or a
    CUDA device that this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}={name!r} is no device", fix=_DEVICE_FIX) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key}={name!r} is not supported: a model runs on CPU and CUDA", fix=_DEVICE_FIX)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"torch sees {count} CUDA devices" if count else "torch finds no CUDA device"
        raise ConfigError(f"{key}={name!r}, but {found}", fix=_DEVICE_FIX)
    return device


def free_memory(cgroup: Path = _CGROUP) -> tuple[int, bool]:
    """The bytes of memory that this process may still take, and whether that is known.

    Where it is not, since psutil is not installed, they are all the memory of the machine. The limit of a container
    that is set in ``cgroup``, a folder of version 2 of Linux's control groups, counts.
    """
    try:
        import psutil
    except ImportError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), False
    available = int(psutil.virtual_memory().available)
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used) + _reclaimable(cgroup))
    return available, True


def _reclaimable(cgroup: Path) -> int:
    """The bytes of cached files in a control group, which make room when memory is needed."""
    for line in _read(cgroup / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def human(size: float) -> str:
    """A number of bytes for people to read, such as ``1.8 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _read(path: Path) -> str:
    """The text of the file; empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def allow_open_files(wanted: int) -> int:
    """Raise this process's limit of open files to ``wanted``, as far as it may be, and return the limit.

    Processes that are started from now on inherit it. A limit that is higher already stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # Some systems have a lower one that they do not tell.
        return soft
    return allowed
