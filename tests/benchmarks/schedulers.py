"""Seconds that a run takes to start and to end, by scheduler and number of processes.

    python -m tests.benchmarks.schedulers [--rounds 3] [--with SETTINGS …]

Each round is a whole ``agentrl train math`` with ``training.steps=0`` in a process of its own, from the shell to its
exit code: the interpreter, the model, the engine, and what the scheduler starts and ends. Ways take turns, and each is
shown beside the first. ``--with 'scheduler=ray training.processes=2'`` adds another way.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

WAYS = ["scheduler=local", "scheduler=local training.processes=2"]
OF_OTHERS = {"ray": ["scheduler=ray", "scheduler=ray training.processes=2"]}
"""Where a plugin registers such a scheduler, the ways that are measured too."""


@dataclass
class Taken:
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def started(settings: list[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    small = ("training.steps=0", "tasks.eval=null", f"run.dir={folder}")
    command = [str(Path(sys.executable).parent / "agentrl"), "train", "math", *small, *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(settings)} ended with exit code {done.returncode}:\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--with", action="append", default=[], dest="others", metavar="SETTINGS")
    given = parser.parse_args()
    installed = {entry.name for entry in metadata.entry_points(group="agentrl.schedulers")}
    ways = [*WAYS, *(way for name, more in OF_OTHERS.items() if name in installed for way in more), *given.others]
    taken = {way: Taken() for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        started(WAYS[0].split(), Path(folder))  # Files are read from the disk once.
        for _ in range(given.rounds):
            for way, times in taken.items():
                wall, cpu = started(way.split(), Path(folder))
                times.wall.append(wall)
                times.cpu.append(cpu)
    first = statistics.median(taken[ways[0]].wall)
    print(f"{'way':<48}{'seconds':>10}{'CPU':>10}{'of the first':>14}")
    for way, times in taken.items():
        wall, cpu = statistics.median(times.wall), statistics.median(times.cpu)
        print(f"{way:<48}{wall:>10.1f}{cpu:>10.1f}{wall / first:>14.2f}")


if __name__ == "__main__":
    main()
