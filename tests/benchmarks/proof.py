"""What the proof of an update costs: seconds of its parts, and its share of a training step.

    python -m tests.benchmarks.proof [--model NAME] [--repeat 5] [--steps 3] [--max-tokens 32]

The parts are measured alone, each side's in its own thread, as a run has them: digests of the engine's tensors and of
the learner's (both at once), a recorded text of 32 tokens scored by both, and a completion of 2 tokens of a prompt of
24, as for an engine in float32. The share is that of ``seconds/proof`` in ``seconds/step`` in steps of 8 groups of 8
of ``math``, the median; the first step, which prepares, is left out. ``--steps 0`` measures the parts alone.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.benchmarks.models import folder_of

from agentrl import Trainer, load_config, open_run
from agentrl.inference.contract import Backend, BackendContext, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.loops import finish_in_thread
from agentrl.reporting.plain import PlainReporter
from agentrl.testing.backends.reference import load_reference

TEXT, PROMPT, TOKENS = list(range(100, 132)), list(range(200, 224)), 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.proof", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a registered model, or a folder")
    parser.add_argument("--repeat", type=int, default=5, help="times that each part is measured")
    parser.add_argument("--steps", type=int, default=3, help="training steps after the first")
    parser.add_argument("--max-tokens", type=int, default=32, help="most tokens of a completion of the steps")
    options = parser.parse_args()
    folder = folder_of(options.model)
    table = Table(title=f"proof of an update, {options.model}")
    for column in ("part", "wall ms", "CPU ms"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, wall, cpu in asyncio.run(parts(folder, options.repeat)):
        table.add_row(name, f"{1000 * wall:.1f}", f"{1000 * cpu:.1f}")
    Console().print(table)
    if options.steps:
        proof, step = share(options.model, options.steps, options.max_tokens)
        print(f"a step of {step:.2f} s, of which the proof takes {1000 * proof:.0f} ms: {proof / step:.2%}")


async def parts(folder: Path, repeat: int) -> list[tuple[str, float, float]]:
    """Name, seconds and CPU seconds of each part, the medians."""
    backend, reference = TorchBackend(BackendContext(folder)), load_reference(folder)
    size = sum(parameter.numel() * 4 for parameter in reference.model.parameters())
    await backend.start()
    try:
        held = await backend.held_weights()
        dtypes = {name: tensor.dtype for name, tensor in (held.tensors or {}).items()}
        turns = itertools.count()
        with reference.weights as weights:
            measured: dict[str, Callable[[], Awaitable[object]]] = {
                f"digests of the engine's {size / 2**20:.0f} MiB": backend.held_weights,
                "digests of the learner's": lambda: finish_in_thread(weights.digests, dtypes),
                "both at once": lambda: asyncio.gather(
                    backend.held_weights(), finish_in_thread(weights.digests, dtypes)
                ),
                "text scored by the engine": lambda: backend.score(TEXT),
                "text scored by the learner": lambda: finish_in_thread(weights.logprobs, TEXT),
                "completion by the engine": lambda: _completed(backend, next(turns)),
                "completion scored by the learner": lambda: finish_in_thread(
                    weights.logprobs, [*PROMPT, *TEXT[:TOKENS]]
                ),
            }
            return [(name, *await _medians(do, repeat)) for name, do in measured.items()]
    finally:
        await backend.stop()


async def _completed(backend: Backend, turn: int) -> None:
    """Of a prompt that is not in the prefix cache, as after an update, which empties it."""
    request = GenerationRequest([turn, *PROMPT[1:]], Sampling(max_tokens=TOKENS))
    async for _ in backend.generate(request):
        pass


async def _medians(do: Callable[[], Awaitable[object]], repeat: int) -> tuple[float, float]:
    walls, cpus = [], []
    await do()
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        await do()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def share(model: str, steps: int, max_tokens: int) -> tuple[float, float]:
    """Seconds of a proof and of a step."""
    with tempfile.TemporaryDirectory() as runs:
        config = load_config(
            None,
            f"run.dir={runs}",
            "run.name=run",
            f"model={model}",
            "tasks.train=arithmetic",
            "tasks.eval=null",
            f"rollout.max_tokens={max_tokens}",
            f"training.steps={steps + 1}",
            "training.checkpoint_every=0",
            environ={},
        )
        with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
            trainer.train("math")
        rows = [row.metrics for row in open_run(Path(runs) / "run").steps()][1:]
    return (
        statistics.median(row["seconds/proof"] for row in rows),
        statistics.median(row["seconds/step"] for row in rows),
    )


if __name__ == "__main__":
    main()
