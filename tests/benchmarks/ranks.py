"""What it costs to spread a learner over processes: FSDP on one rank, and two ranks of a thread beside one of two.

    python -m tests.benchmarks.ranks [--model NAME] [--load NAME] [--repeat 5]

``FSDP, 1 rank`` is a process group of size 1, in which nothing is sent but everything else is done, beside the plain
learner, on one thread each; to reach: under 3 % more, by CPU time. ``2 ranks`` are two processes of one thread each
that share the passes of a batch, beside one process of two threads, by the time that passes. The loads are those of
``learner``. The sides take turns, and the fastest step of each counts.

The peak of a side is the memory of its largest process, with what the libraries take.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from rich.table import Table
from tests.benchmarks.learner import GRPO, loads, random_model
from tests.benchmarks.models import folder_of
from tests.benchmarks.taken import Taken
from transformers import AutoConfig

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner.learner import Learner
from agentrl.learner.ranks import Ranks

PATIENCE = 600.0
SIDES = {"1 thread": (1, 1, False), "FSDP, 1 rank": (1, 1, True), "2 threads": (1, 2, False), "2 ranks": (2, 1, True)}
"""Processes, threads of each, and whether there is a process group."""
BASE = {"FSDP, 1 rank": "1 thread", "2 ranks": "2 threads"}


class Side:
    """The processes of one side, which take a step each time that they are asked."""

    def __init__(self, folder: Path, load: str, processes: int, threads: int, together: bool) -> None:
        address = Ranks.free_address() if together else "-"
        command = [sys.executable, "-m", "tests.benchmarks.ranks", "--rank"]
        self._processes = [
            subprocess.Popen(
                [*command, json.dumps([str(folder), load, rank, processes, threads, address])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        self.taken: list[Taken] = []
        self.metrics: dict[str, float] = {}
        self.peak = 0.0
        self._answers()

    def step(self) -> None:
        for process in self._processes:
            _pipe(process.stdin).write("step\n")
            _pipe(process.stdin).flush()
        answers = self._answers()
        self.taken.append(Taken(max(each["wall"] for each in answers), sum(each["cpu"] for each in answers)))
        self.metrics = answers[0]["metrics"]
        self.peak = max(each["peak"] for each in answers)

    def _answers(self) -> list[dict[str, Any]]:
        return [json.loads(_pipe(process.stdout).readline()) for process in self._processes]

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                _pipe(process.stdin).close()
        for process in self._processes:
            process.wait()
            _pipe(process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def rank(folder: str, load: str, rank: int, size: int, threads: int, address: str) -> None:
    """One process of a side."""
    torch.set_num_threads(threads)
    ranks = Ranks.alone() if address == "-" else Ranks.join(rank, size, address, "cpu", PATIENCE)
    batch, _ = build_batch(loads(AutoConfig.from_pretrained(folder).vocab_size)[load], GRPO)
    learner = Learner(Path(folder), TrainingSection(), GRPO.loss, seed=0, ranks=ranks)
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        start = Taken.now()
        metrics = learner.step(batch).metrics
        taken = Taken.now().since(start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"wall": taken.wall, "cpu": taken.cpu, "metrics": metrics, "peak": peak}), flush=True)
    ranks.leave()


def measure(folder: Path, load: str, repeat: int) -> Iterator[list[str]]:
    for pair in (("1 thread", "FSDP, 1 rank"), ("2 threads", "2 ranks")):
        sides = {name: Side(folder, load, *SIDES[name]) for name in pair}
        for _ in range(repeat):
            for side in sides.values():
                side.step()
        clock = "cpu" if pair[0] == "1 thread" else "wall"
        best = {name: min(getattr(each, clock) for each in side.taken) for name, side in sides.items()}
        for name, side in sides.items():
            fastest = min(side.taken, key=lambda each: getattr(each, clock))
            yield [
                load,
                name,
                f"{side.metrics['tokens/forest']:,.0f}",
                f"{side.metrics['learner/passes']:.0f}",
                f"{1000 * fastest.wall:,.0f}",
                f"{1000 * fastest.cpu:,.0f}",
                f"{side.peak:,.0f}",
                f"{best[name] / best[pair[0]]:.3f} by {clock}",
            ]
        for side in sides.values():
            side.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model's name or folder; by default random weights")
    parser.add_argument("--load", choices=loads(2), help="one of the loads; by default both")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(*json.loads(options.rank))
        return
    table = Table("load", "side", "tokens computed", "passes", "step ms", "CPU ms", "peak MB", "times")
    with random_model() as random_folder:
        folder = folder_of(options.model) if options.model else random_folder
        for load in [options.load] if options.load else loads(2):
            for row in measure(folder, load, options.repeat):
                table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
