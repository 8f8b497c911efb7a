"""``python -m tests.gpu.colocated FOLDER PYTHON``: vLLM and the learner on one GPU, which take turns; prints JSON.

Measured are the seconds of falling asleep, of waking, and of the transfer of the weights beside a copy of the same
bytes on the device. PYTHON is an interpreter with vLLM; without a GPU nothing is measured, and the reason is printed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from agentrl.inference.contract import BackendContext
from agentrl.learner.lending import LentWeights
from agentrl.learner.policy import Policy
from agentrl.plugins import Plugins
from agentrl.plugins.building import as_part

ROUNDS = 3
SHARE = 0.5
"""Of the device's memory, the server's."""


async def measure(folder: Path, python: Path) -> dict[str, Any]:
    """Returns the medians of ``ROUNDS`` turns."""
    from contextlib import asynccontextmanager

    from transformers import AutoModelForCausalLM

    device = torch.device("cuda")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    size = sum(parameter.nbytes for parameter in model.parameters())
    whole = torch.cuda.get_device_properties(device).total_memory

    def lent(version: int) -> LentWeights:
        return LentWeights(Policy(model), version, folder, borrower="the measurement")

    version = 0

    @asynccontextmanager
    async def lend(borrower: str) -> Any:
        with lent(version) as weights:
            yield weights

    part = as_part({"name": "vllm", "colocate": True, "python": str(python)})
    context = BackendContext(
        folder, max_concurrency=64, options=part.options, lend=lend, memory=int(SHARE * whole), say=_say
    )
    backend: Any = Plugins().build("backends", part, context=context)
    began = time.perf_counter()
    await backend.start()
    found: dict[str, Any] = {"start": time.perf_counter() - began, "bytes": size}
    try:
        rounds: dict[str, list[float]] = {"sleep": [], "wake": [], "transfer": []}
        held = torch.cuda.mem_get_info(device)[0]
        for version in range(1, ROUNDS + 1):
            rounds["sleep"].append(await _timed(backend.sleep()))
            found["freed"] = torch.cuda.mem_get_info(device)[0] - held
            rounds["wake"].append(await _timed(backend.wake()))
            with lent(version) as weights:
                rounds["transfer"].append(await _timed(backend.update_weights(weights)))
        found |= {name: sorted(seconds)[len(seconds) // 2] for name, seconds in rounds.items()}
    finally:
        await backend.stop()
    found["copy"] = _copied(model)
    return found


async def _timed(work: Any) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def _copied(model: Any) -> float:
    """Seconds of a copy of the model's weights on the device."""
    targets = [torch.empty_like(parameter) for parameter in model.parameters()]
    torch.cuda.synchronize()
    began = time.perf_counter()
    for target, parameter in zip(targets, model.parameters(), strict=True):
        target.copy_(parameter.data)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> int:
    if not torch.cuda.is_available():
        print("torch finds no CUDA device: nothing is measured", file=sys.stderr)
        return 3
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1]), Path(sys.argv[2])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
