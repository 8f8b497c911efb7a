"""Processes that are the ranks of a learner, for any number of tests: each runs what it is told, by its name.

This module, started by a warm interpreter, is one of them. It reads pickled tasks from its standard input, answers on
its standard output, and prints whatever else there is to its standard error.
"""

from __future__ import annotations

import importlib
import os
import pickle
import selectors
import sys
import time
import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.warm import WarmInterpreter, WarmProcess

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds for what a test asks of them, and for a rank to wait for another."""


class Task(NamedTuple):
    """``target`` is ``module:function``, which is called with the process's ``Ranks`` and ``arguments``."""

    target: str
    arguments: tuple[Any, ...]
    rank: int
    size: int
    address: str
    patience: float


class RankProcesses:
    """``count`` processes, of which the first few are the ranks of each task."""

    def __init__(self, warm: WarmInterpreter, count: int) -> None:
        self.processes: list[WarmProcess] = []
        self._tasks: list[IO[bytes]] = []
        self._answers: list[IO[bytes]] = []
        for _ in range(count):
            (tasks, told), (answered, answers) = os.pipe(), os.pipe()
            module = "tests.learner.rank_processes"
            self.processes.append(warm.start(cwd=ROOT, module=module, stdin=tasks, stdout=answers))
            os.close(tasks)
            os.close(answers)
            self._tasks.append(os.fdopen(told, "wb"))
            self._answers.append(os.fdopen(answered, "rb"))

    def run(self, size: int, target: str, *arguments: Any, patience: float = PATIENCE) -> list[Any]:
        """Have the first ``size`` processes do a task together; returns what each returned, or raised."""
        self.begin(size, target, *arguments, patience=patience)
        return [self.result(rank, patience + 30) for rank in range(size)]

    def begin(self, size: int, target: str, *arguments: Any, patience: float = PATIENCE) -> None:
        from agentrl.learner.ranks import Ranks

        address = Ranks.free_address()
        for rank, tasks in enumerate(self._tasks[:size]):
            pickle.dump(Task(target, arguments, rank, size, address, patience), tasks)
            tasks.flush()

    def result(self, rank: int, patience: float) -> Any:
        """What the process answers, within so many seconds; ``None`` where it has ended."""
        output = self._answers[rank]
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            assert selector.select(patience), f"rank {rank} has not answered within {patience:g} s"
        try:
            return pickle.load(output)
        except EOFError:
            return None

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for pipe in (*self._tasks, *self._answers):
            pipe.close()


def main() -> None:
    import torch

    from agentrl.learner.ranks import Ranks

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        module, _, name = task.target.partition(":")
        try:
            ranks = Ranks.join(task.rank, task.size, task.address, "cpu", task.patience)
            try:
                made = getattr(importlib.import_module(module), name)(ranks, *task.arguments)
            finally:
                began = time.monotonic()
                ranks.leave()
                assert time.monotonic() - began < 10
        except BaseException as error:
            import traceback

            traceback.print_exc()
            made = error
        pickle.dump(made, answers)
        answers.flush()


if __name__ == "__main__":
    main()
