"""The memory that this process may still take, and how a number of bytes is written for people."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["free_memory", "human"]

_CGROUP = Path("/sys/fs/cgroup")


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
