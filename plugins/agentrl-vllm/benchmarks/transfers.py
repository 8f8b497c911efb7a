"""Seconds that weights take from one process to another, by each way that needs no GPU, beside a copy in memory.

The receiver is a process that keeps each tensor for a moment, as a server's worker does before its kernels take it up;
loading into a model is not measured. Ways take turns, so that each meets the same machine.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agentrl_vllm.folders import choose_root
from agentrl_vllm.stream import Listener, SharedBuffer, Stream, Tensors

BUFFER = 8 * 2**20


def model(megabytes: int) -> dict[str, torch.Tensor]:
    """Tensors of the sizes that a model has: a large embedding, and layers of a few megabytes."""
    whole = megabytes * 250_000
    tensors = {"embedding": torch.randn(whole // 4)}
    tensors |= {f"layer {number}": torch.randn(whole * 3 // 4 // 24) for number in range(24)}
    return tensors


def copied(tensors: dict[str, torch.Tensor]) -> float:
    """Seconds of a copy in the memory of one process, into memory that is there."""
    targets = {name: torch.empty_like(tensor).zero_() for name, tensor in tensors.items()}
    began = time.perf_counter()
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)
    return time.perf_counter() - began


def streamed(tensors: dict[str, torch.Tensor], carrier: str) -> float:
    """Seconds until another process has taken all from a connection, or from shared memory."""
    token = secrets.token_hex(16)
    listener = Listener("127.0.0.1", token)
    receiver = _receiver("stream", str(listener.port), token)
    while (worker := listener.accept()) is None:
        pass
    began = time.perf_counter()
    sending = Tensors([worker], carrier, SharedBuffer(BUFFER) if carrier == "shared" else None)
    for name, tensor in tensors.items():
        sending.send(name, tensor)
    sending.end()
    _heard(receiver)
    seconds = time.perf_counter() - began
    sending.close()
    listener.close()
    return seconds


def by_folder(tensors: dict[str, torch.Tensor]) -> float:
    """Seconds until another process has read all from a folder in shared memory."""
    folder = Path(tempfile.mkdtemp(dir=choose_root(None, Path())))
    receiver = _receiver("folder", str(folder))
    _heard(receiver)
    began = time.perf_counter()
    save_file(tensors, folder / "model.safetensors")
    assert receiver.stdin is not None
    receiver.stdin.write("go\n")
    receiver.stdin.flush()
    _heard(receiver)
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def _receiver(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.transfers", "--receive", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


def _heard(receiver: subprocess.Popen[str]) -> None:
    assert receiver.stdout is not None
    if not receiver.stdout.readline():
        raise SystemExit("the receiver has ended")


def receive(way: str, *arguments: str) -> None:
    """What the other process does."""
    torch.set_num_threads(1)
    if way == "stream":
        port, token = arguments
        for _, tensor in Stream.opened("127.0.0.1", int(port), token, "receiver", "cpu").tensors(None):
            assert tensor.numel()
    else:
        print("ready", flush=True)
        sys.stdin.readline()
        for tensor in load_file(Path(arguments[0]) / "model.safetensors").values():
            tensor.clone()
    print("done", flush=True)


WAYS: dict[str, Callable[[dict[str, torch.Tensor]], float]] = {
    "copy in memory": copied,
    "shared memory, in pieces": lambda tensors: streamed(tensors, "shared"),
    "connection": lambda tensors: streamed(tensors, "inline"),
    "folder in shared memory": by_folder,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=540, help="of the weights: as much as SmolLM2 has in float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--receive", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        receive(*options.receive)
        return 0
    torch.set_num_threads(1)
    tensors = model(options.megabytes)
    size = sum(tensor.nbytes for tensor in tensors.values())
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, measure in WAYS.items():
            taken[name].append(measure(tensors))
    rows: dict[str, Any] = {name: median(seconds) for name, seconds in taken.items()}
    if options.json:
        print(json.dumps({"bytes": size, "seconds": rows}))
        return 0
    print(f"weights of {size / 1e6:.0f} MB, medians of {options.rounds}")
    for name, seconds in rows.items():
        times = seconds / rows["copy in memory"]
        print(f"  {name:26} {seconds:7.3f} s  {size / seconds / 1e9:6.2f} GB/s  {times:5.1f} times a copy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
