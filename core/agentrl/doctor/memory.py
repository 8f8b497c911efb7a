"""Memory and disk, as far as this process may use them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["existing_parent", "free_disk", "free_memory", "human"]

_CGROUP = Path("/sys/fs/cgroup")


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> tuple[int, bool]:
    """Bytes that this process may still take, and whether that is known; else all the memory that the machine has.

    A container's limit counts.
    """
    fields = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    if "MemAvailable" not in fields:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), False
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used) + _reclaimable(cgroup))
    return available, True


def _reclaimable(cgroup: Path) -> int:
    """Bytes of cached files, which make room when they must."""
    for line in _read(cgroup / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def existing_parent(path: Path) -> Path:
    """The folder ``path``, or the nearest above it that exists."""
    folder = Path(os.path.expanduser(path)).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_disk(folder: Path) -> int:
    """Bytes that are free where ``folder`` is."""
    return shutil.disk_usage(folder).free


def human(size: float) -> str:
    """A number of bytes as people read it: ``1.8 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _read(path: Path) -> str:
    """What the file says; nothing where there is none that can be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
