"""How much of the machine's processors is ours."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["usable_processors"]

_CGROUP = Path("/sys/fs/cgroup")


def usable_processors(cgroup: Path = _CGROUP) -> int:
    """How many processors this process may keep busy; a container's share counts."""
    affinity = getattr(os, "sched_getaffinity", None)
    processors = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        processors = min(processors, max(1, round(int(quota) / int(period))))
    return processors


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
