"""``python -m tests.gpu.memory FOLDER [KEY=VALUE …]``: what a learner's two steps took beside what was planned.

It is a process of its own, since memory that a process has had stays with it. Prints one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import torch
from tests.algorithms.algorithms import grpo
from tests.gpu.shapes import filled_batch

from agentrl.config import load_config
from agentrl.learner.learner import Learner
from agentrl.training.plan import plan_memory

__all__ = ["measure"]


def measure(folder: Path, *settings: str) -> dict[str, object]:
    """Two steps of two full passes each: bytes planned and taken, with the growth of the process from here on."""
    config = load_config(None, *settings, environ={})
    loss = grpo().loss
    plan = plan_memory(config, folder)
    planned = sum(size for name, size in plan.parts.items() if name != "engine")
    process, before = psutil.Process(), psutil.Process().memory_info().rss
    _forget_peak()
    learner = Learner(folder, config.training, loss, seed=0)
    cuda = learner.model.device.type == "cuda"
    batch = filled_batch(learner.model.config.get_text_config().vocab_size, plan.tokens)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        metrics = learner.step(batch).metrics
        seconds.append(time.perf_counter() - began)
    taken = torch.cuda.max_memory_allocated() if cuda else _peak(process) - before
    return {
        "planned": planned,
        "taken": taken,
        "parts": plan.parts,
        "host": plan.host,
        "passes": metrics["learner/passes"],
        "tokens_per_second": sum(map(len, batch.paths)) / seconds[-1],
    }


def _forget_peak() -> None:
    """Let Linux count the peak of this process from here on; elsewhere it counts from the start."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _peak(process: psutil.Process) -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), *sys.argv[2:])))
