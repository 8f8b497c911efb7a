"""Seconds of a checkpoint, whole and durable, beside a bare write of the same weights with safetensors.

::

    python -m tests.benchmarks.checkpoint [--model NAME] [--repeat N]

A checkpoint holds the weights, the optimiser's state of about twice their size, and the small files of the model. The
bare write holds the weights alone; one that ends on the disk, as a checkpoint does, stands beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from tests.algorithms.algorithms import grpo
from tests.benchmarks.models import folder_of

from agentrl.config import load_config
from agentrl.learner.contract import Targets, TrainBatch
from agentrl.learner.learner import Learner
from agentrl.runs.folder import RunFolder, sync_tree
from agentrl.training.checkpoints import save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        learner = _trained(folder_of(given.model))
        folder = RunFolder.create(load_config(None, f"run.dir={scratch}", environ={}), datetime.now)
        state = {name: tensor.detach().clone() for name, tensor in learner.model.named_parameters()}
        bare = Path(scratch) / "bare"
        bare.mkdir()

        def checkpoint(number: int) -> None:
            with folder.new_checkpoint(number) as place:
                save_checkpoint(place, learner, cursor=0)

        def write(number: int) -> None:
            save_file(state, bare / f"{number}.safetensors")

        def write_durably(number: int) -> None:
            write(number)
            sync_tree(bare)

        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        print(f"{given.model}: {size / 1e6:,.0f} MB of weights, {given.repeat} rounds, medians")
        base = _seconds(write, given.repeat)
        for what, seconds in (
            ("bare safetensors write", base),
            ("the same, on the disk", _seconds(write_durably, given.repeat)),
            ("checkpoint", _seconds(checkpoint, given.repeat)),
        ):
            print(f"  {what:24} {seconds * 1e3:9.1f} ms  {seconds / base:5.1f} x")
        saved = folder.checkpoint(given.repeat)
        whole = sum(os.path.getsize(path) for path in saved.rglob("*") if path.is_file())
        print(f"  a checkpoint is {whole / 1e6:,.0f} MB, {whole / size:.1f} x the weights")


def _trained(folder: Path) -> Learner:
    """A learner after a step, so that the optimiser has its moments."""
    algorithm = grpo()
    learner = Learner(folder, load_config(environ={}).training, algorithm.loss, 0)
    count = 8
    targets = Targets(np.zeros(count, dtype=np.int64), np.arange(count), np.arange(count) + 1, np.ones(count))
    zeros, ones = np.zeros(count), np.ones(count)
    versions = np.zeros(count, dtype=np.int64)
    learner.step(
        TrainBatch(
            paths=(np.arange(count + 1),),
            targets=targets,
            logprob=zeros - 5.0,
            version=versions,
            advantage=ones,
            weight=ones / count,
            call=versions,
            labels=("benchmark",),
        )
    )
    return learner


def _seconds(write: Callable[[int], None], repeat: int) -> float:
    taken = []
    for number in range(1, repeat + 1):
        began = time.perf_counter()
        write(number)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
