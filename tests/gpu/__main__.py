"""``python -m tests.gpu``: what a GPU makes of the product, in at most ten minutes; prints one line a measurement.

It trains the quickstart unchanged, and then takes SmolLM2 (where ``agentrl-smollm2`` is installed) and random models
of the shapes of Qwen3-0.6B and Qwen3-4B: tokens a second of engine and learner, the learner's share of the device's
measured matrix products (MFU), the memory plan beside what was taken, and the mismatch KL in bfloat16; and of the
torch engine with a copy of the learner's weights and with the learner's own: seconds of an update, for how long
requests stand still in it, and the memory. With ``--vllm PYTHON`` it measures vLLM on the learner's GPU: how long
falling asleep, waking and taking weights are. Where torch finds no GPU it goes the same way with a small shape on the
CPU, to show that it does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tests.gpu.shapes import random_model

from agentrl.config.models import ModelSection
from agentrl.errors import AgentRLError
from agentrl.inference.model_folder import count_parameters, find_model
from agentrl.plugins import Plugins

SMALL = ("training.tokens_per_batch=256",)
SHAPES: dict[str, tuple[str, ...]] = {
    "smollm2-135m": (),
    "qwen3-0.6b": (),
    "qwen3-4b": ("training.gradient_checkpointing=true",),
}
"""The models, with the settings that each is trained with; bfloat16 is the default on a GPU."""
SHARING = ("qwen3-0.6b", "qwen3-small")
"""Those of which engine and learner are tried with shared weights."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", help="by default cuda where torch finds one, else cpu, and --small with it")
    parser.add_argument("--small", action="store_true", help="a small shape, few tokens and one step of the quickstart")
    parser.add_argument("--minutes", type=float, default=10.0, help="what is not begun by then is left out")
    parser.add_argument("--vllm", type=Path, help="an interpreter with vLLM: learner and server then share the GPU")
    options = parser.parse_args()
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
        if options.device == "cpu":
            options.small = True
            left_out = ", ".join(SHAPES)
            print(f"torch finds no CUDA device: left out are {left_out}, and a small shape is measured on the CPU")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch finds no CUDA device: nothing is measured (without --device the CPU is)", file=sys.stderr)
        return 3
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as place:
        _quickstart(Path(place), options, ends)
        peak = _matrix_products(options)
        shapes = {"qwen3-small": SMALL} if options.small else SHAPES
        for name, settings in shapes.items():
            _shape(name, Path(place), options, settings, ends, peak)
        _colocated(Path(place), options, ends)
    return 0


def _colocated(place: Path, options: argparse.Namespace, ends: float) -> None:
    """vLLM on the learner's GPU, where an interpreter with a build for GPUs is named."""
    if options.vllm is None or not options.device.startswith("cuda"):
        print("colocated vLLM: left out: it needs a GPU, and --vllm PYTHON with a vLLM for it")
        return
    folder = random_model("qwen3-0.6b", place / "colocated")
    command = [sys.executable, "-m", "tests.gpu.colocated", str(folder), str(options.vllm)]
    _say("colocated vLLM", _run(command, ends))


def _quickstart(place: Path, options: argparse.Namespace, ends: float) -> None:
    few = ("training.steps=1", "tasks.eval=null") if options.small else ()
    code = "from agentrl.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "math", f"run.dir={place / 'runs'}", "--json", *few]
    device = f"training.device={options.device}" if options.small else None
    found = _run([*command, *([device] if device else [])], ends)
    keys = ("outcome", "steps", "reward_before", "reward_after", "seconds")
    _say("quickstart", None if found is None else {key: found.get(key) for key in keys})


def _matrix_products(options: argparse.Namespace) -> float:
    """Floating-point operations a second that products of bfloat16 reach on the device."""
    size, repeats = (1024, 3) if options.small else (8192, 20)
    left = torch.randn(size, size, device=options.device, dtype=torch.bfloat16)
    for _ in range(2):
        left @ left
    _wait(options.device)
    began = time.perf_counter()
    for _ in range(repeats):
        left @ left
    _wait(options.device)
    reached = repeats * 2 * size**3 / (time.perf_counter() - began)
    _say("matrix products", {"tflops": reached / 1e12})
    return reached


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _shape(
    name: str, place: Path, options: argparse.Namespace, settings: tuple[str, ...], ends: float, peak: float
) -> None:
    try:
        folder = (
            find_model(Plugins(), ModelSection(name=name)) if "smollm" in name else random_model(name, place / name)
        )
    except AgentRLError as error:
        print(f"{name}: left out: {error.message}")
        return
    where = (f"training.device={options.device}", f"inference.backend.device={options.device}")
    precision = "training.precision=bfloat16"
    module = [sys.executable, "-m", "tests.gpu.memory", str(folder), *where, precision, *settings]
    learned = _run(module, ends)
    if learned is not None:
        rate = learned["tokens_per_second"]
        learned = {
            "tokens_per_second": rate,
            "mfu": 6 * count_parameters(folder) * rate / peak,
            "planned_gb": learned["planned"] / 1e9,
            "taken_gb": learned["taken"] / 1e9,
        }
    _say(f"{name}: learner", learned)
    rows, tokens = ("4", "8") if options.small else ("64", "128")
    module = [sys.executable, "-m", "tests.gpu.engine", str(folder), options.device, "bfloat16", rows, tokens]
    _say(f"{name}: engine", _run(module, ends))
    for side in ("copied", "shared") if name in SHARING else ():
        options_of = (f"--device={options.device}", f"--rows={rows}", f"--tokens={tokens}", "--repeat=3")
        module = [sys.executable, "-m", "tests.benchmarks.transfer", f"--model={folder}", f"--side={side}", *options_of]
        _say(f"{name}: weights {side}", _run(module, ends))


def _run(command: list[str], ends: float) -> dict[str, Any] | None:
    """The JSON document that the command prints; ``None`` where it fails or the time is over, which is said."""
    left = ends - time.monotonic()
    if left < 10:
        print("left out: the time is over")
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        print("stopped: the time is over")
        return None
    if done.returncode:
        print(f"failed with {done.returncode}: {done.stderr.strip()[-600:]}")
        return None
    text = done.stdout
    document: dict[str, Any] = json.loads(text[text.index("{") :])
    return document


def _say(what: str, found: dict[str, Any] | None) -> None:
    if found is None:
        print(f"{what}: not measured", flush=True)
        return
    shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items())
    print(f"{what}: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
