"""What it takes to give an engine new weights, each way beside a memory copy of the same bytes.

    python -m tests.benchmarks.transfer [--model NAME_OR_FOLDER] [--repeat 5] [--rows 64] [--tokens 32]

Ways are the torch engine with a copy of the weights, and with the learner's own, for which it stands still during the
optimiser's update; a learner in another process of this machine, whose weights come through shared memory; and a model
folder in the machine's memory, as engines in other processes read it. *Alone* is what the transfer adds where nothing
else runs, the median. With a copy and with sharing, each in a process of its own, stand beside each other the seconds
of a whole update (the learner's step of a few tokens, until the engine has its weights), the memory that learner and
engine take after some, and the engine's tokens a second, the best of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from tests.algorithms.algorithms import grpo
from tests.benchmarks.models import folder_of
from tests.gpu.shapes import filled_batch

from agentrl.config import load_config
from agentrl.config.training import TrainingSection
from agentrl.hosting.local import LocalHosts
from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.learner.learner import Learner
from agentrl.training.ranked_learner import RankedLearner

DEVICE = "cpu"
PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a registered model, or a folder")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--side", choices=("copied", "shared"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = folder_of(given.model)
    if given.side is not None:
        print(json.dumps(asyncio.run(side(folder, given, shares=given.side == "shared"))))
        return
    sides = {name: _in_a_process(given, name) for name in ("copied", "shared")}
    size, copying, others = elsewhere(folder, given)
    ways = {
        "the torch engine, with a copy": sides["copied"]["transfer"],
        "the torch engine, sharing": sides["shared"]["transfer"],
    }
    print(f"{given.model}: {size / 1e6:,.1f} MB of weights")
    table = Table(title="a transfer, alone")
    for column in ("way", "ms", "of a memory copy"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, seconds in {"a memory copy of the same bytes": copying, **ways, **others}.items():
        table.add_row(way, f"{1e3 * seconds:.2f}", f"{seconds / copying:.2f}")
    Console().print(table)
    table = Table(title="learner and torch engine in one process")
    for column in ("", *sides):
        table.add_column(column, justify="left" if not column else "right")
    for what, key, scale in (
        ("update, s", "update", 1.0),
        ("standing still in it, ms", "paused", 1e3),
        ("memory, MB", "memory", 1e-6),
        ("start of the engine, s", "start", 1.0),
        (f"tokens a second, {given.rows} rows", "tokens_per_second", 1.0),
    ):
        table.add_row(what, *(f"{found[key] * scale:,.2f}" for found in sides.values()))
    Console().print(table)


def _in_a_process(given: argparse.Namespace, name: str) -> dict[str, float]:
    options = [f"--{key}={getattr(given, key)}" for key in ("model", "repeat", "rows", "tokens", "device")]
    command = [sys.executable, "-m", "tests.benchmarks.transfer", *options, "--side", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


async def side(folder: Path, given: argparse.Namespace, *, shares: bool) -> dict[str, float]:
    """What learner and engine in one process take, with shared weights or with a copy."""
    before = _memory(given.device)
    settings = TrainingSection.model_validate({"device": given.device, "learning_rate": 1e-5})
    learner = Learner(folder, settings, grpo().loss, seed=0)
    precision = "bfloat16" if learner.model.dtype == torch.bfloat16 else "float32"
    options: dict[str, object] = {
        "device": given.device,
        "context_length": PROMPT + given.tokens + 2,
        "share_weights": shares,
    }
    backend = TorchBackend(BackendContext(folder, max_concurrency=given.rows, precision=precision, options=options))
    if shares:
        memory = learner.share("the engine", backend.paused)
        assert backend.share(memory)
    began = time.perf_counter()
    await backend.start()
    start = time.perf_counter() - began
    try:
        batch = filled_batch(learner.model.config.get_text_config().vocab_size, 64, passes=1, rows=4)
        transfers, updates, paused = [], [], []
        for _ in range(given.repeat + 1):
            held = time.perf_counter()
            with backend.paused():  # What a change adds that takes no time itself.
                pass
            held = time.perf_counter() - held
            began = time.perf_counter()
            metrics = (await asyncio.to_thread(learner.step, batch)).metrics
            stepped = time.perf_counter()
            with learner.lend("the engine") as weights:
                await backend.update_weights(weights)
            _wait(given.device)
            ended = time.perf_counter()
            transfers.append(ended - stepped + (held if shares else 0.0))
            updates.append(ended - began)
            paused.append(metrics["seconds/learner/update"] if shares else ended - stepped)
        # Only now: weights that were read from a file are the process's own once they have been written to.
        taken = _memory(given.device) - before
        rates = [await _rate(backend, given, seed) for seed in range(3)]
    finally:
        await backend.stop()
    return {
        "transfer": statistics.median(transfers[1:]),
        "update": statistics.median(updates[1:]),
        "paused": statistics.median(paused[1:]),
        "memory": taken,
        "start": start,
        "tokens_per_second": max(rates),
    }


async def _rate(backend: TorchBackend, given: argparse.Namespace, seed: int) -> float:
    async def one(number: int) -> int:
        prompt = tuple(100 + (number * 31 + place * 7) % 211 for place in range(PROMPT))
        request = GenerationRequest(prompt, Sampling(max_tokens=given.tokens, seed=1000 * seed + number))
        return sum([len(chunk.ids) async for chunk in backend.generate(request)])

    began = time.perf_counter()
    counts = await asyncio.gather(*(one(number) for number in range(given.rows)))
    return sum(counts) / (time.perf_counter() - began)


def _memory(device: str) -> int:
    """Bytes of the process, or of tensors on the GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_full_info().uss)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def elsewhere(folder: Path, given: argparse.Namespace) -> tuple[int, float, dict[str, float]]:
    """Bytes of the weights, seconds of a memory copy of them, and of the ways to an engine that is not beside them."""
    config = load_config(None, f"training.device={given.device}", "agent=math", environ={})
    learner = RankedLearner.start(LocalHosts(), config, folder)
    try:
        with learner.lend("a benchmark") as weights:
            held = {name: tensor.clone() for name, tensor in weights.tensors()}
            target = {name: tensor.clone() for name, tensor in held.items()}

            def copy() -> None:
                for name, tensor in held.items():
                    target[name].copy_(tensor)

            def carried() -> None:
                for name, tensor in weights.tensors():
                    target[name].copy_(tensor)

            def saved() -> None:
                with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
                    weights.save(Path(place))

            copying = _median(copy, given.repeat)
            ways = {
                "from another process, through shared memory": _median(carried, given.repeat),
                "a model folder in memory, written": _median(saved, given.repeat),
            }
    finally:
        learner.close()
    return sum(tensor.nbytes for tensor in held.values()), copying, ways


def _median(do: Callable[[], None], repeat: int) -> float:
    do()
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
