"""Tokens a second of the torch engine beside ``model.generate``, on equal and on ragged lengths.

    python -m tests.benchmarks.engine [--model FOLDER] [--repeat 5]

Equal: 64 requests of 32 tokens. Ragged: 256 requests over 64 slots, lengths log-normal and capped at 128;
``generate`` runs them as four batches of 64, each padded to its longest. Every request has a prompt of its
own and samples at temperature 1. The engine is asked through its contract, from an event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.intraop import threads_for

SLOTS = 64
PROMPT = 24


@dataclass(frozen=True)
class Load:
    """Prompts and how many tokens to sample after each."""

    name: str
    prompts: list[list[int]]
    lengths: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def loads(vocabulary: int) -> list[Load]:
    generator = random.Random(0)
    ragged = [max(1, min(128, round(generator.lognormvariate(3.0, 0.9)))) for _ in range(4 * SLOTS)]
    made = []
    for name, lengths in (("equal", [32] * SLOTS), ("ragged", ragged)):
        prompts = [[generator.randrange(vocabulary) for _ in range(PROMPT)] for _ in lengths]
        made.append(Load(name, prompts, lengths))
    return made


def best(tokens: int, seconds: Sequence[float]) -> float:
    """Tokens a second of the median repeat."""
    return tokens / statistics.median(seconds)


async def engine_seconds(backend: TorchBackend, load: Load, repeat: int) -> list[float]:
    async def one(prompt: list[int], length: int, seed: int) -> None:
        request = GenerationRequest(prompt, Sampling(max_tokens=length, seed=seed))
        async for chunk in backend.generate(request):
            assert len(chunk.ids) == length

    async def run(round_: int) -> None:
        # Another first token each time: nothing of the round before is found in the prefix cache.
        prompts = [[round_, *prompt[1:]] for prompt in load.prompts]
        await asyncio.gather(*(one(*row) for row in zip(prompts, load.lengths, range(10**6), strict=False)))

    return await timed(run, repeat)


async def timed(run: Callable[[int], Awaitable[None]], repeat: int) -> list[float]:
    seconds = []
    for round_ in range(repeat + 1):
        begun = time.perf_counter()
        await run(round_)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def generate_seconds(model: PreTrainedModel, load: Load, repeat: int) -> list[float]:
    async def run(_: int) -> None:
        for first in range(0, len(load.prompts), SLOTS):
            ids = torch.tensor(load.prompts[first : first + SLOTS])
            longest = max(load.lengths[first : first + SLOTS])
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )

    return asyncio.run(timed(run, repeat))


async def step_milliseconds(backend: TorchBackend, rows: int, tokens: int = 64) -> float:
    async def one(seed: int) -> None:
        async for _ in backend.generate(GenerationRequest([seed], Sampling(max_tokens=tokens, seed=seed))):
            pass

    await asyncio.gather(*(one(seed) for seed in range(rows)))
    before = backend.counters()
    await asyncio.gather(*(one(seed) for seed in range(rows)))
    after = backend.counters()
    return 1000 * (after.busy_seconds - before.busy_seconds) / (after.steps - before.steps)


@torch.inference_mode()
def forward_milliseconds(model: PreTrainedModel, rows: int, tokens: int = 64) -> float:
    """The plain forward of one token a row, over a cache that grows as the engine's does."""
    seconds = []
    for _ in range(2):
        cache = DynamicCache(config=model.config)
        begun = time.perf_counter()
        for _ in range(tokens):
            model(torch.ones((rows, 1), dtype=torch.long), past_key_values=cache, use_cache=True)
        seconds.append(time.perf_counter() - begun)
    return 1000 * min(seconds) / tokens


async def measure_engine(folder: Path, cases: list[Load], repeat: int) -> tuple[dict[str, float], dict[int, float]]:
    backend = TorchBackend(BackendContext(folder, max_concurrency=SLOTS))
    await backend.start()
    try:
        rates = {load.name: best(load.tokens, await engine_seconds(backend, load, repeat)) for load in cases}
        return rates, {rows: await step_milliseconds(backend, rows) for rows in (1, 8, SLOTS)}
    finally:
        await backend.stop()


def random_model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def bundled() -> Path | None:
    """The bundled model's folder, where it is installed."""
    from agentrl.plugins import Plugins

    plugins = Plugins()
    names = {entry.name for entry in plugins.entries("models")}
    return Path(str(plugins.get("models", "tiny"))) if "tiny" in names else None


def report(folder: Path, repeat: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cases = loads(model.config.vocab_size)
    rates, steps = asyncio.run(measure_engine(folder, cases, repeat))
    # Both sides get the threads that suit the model: two are slower than one for a small model.
    torch.set_num_threads(threads_for(model))
    table = Table(title=f"tokens a second, {folder.name}, {model.num_parameters():,} parameters, median of {repeat}")
    for heading in ("load", "tokens", "engine", "model.generate", "ratio"):
        table.add_column(heading, justify="right")
    for load in cases:
        plain = best(load.tokens, generate_seconds(model, load, repeat))
        ratio = rates[load.name] / plain
        table.add_row(load.name, f"{load.tokens:,}", f"{rates[load.name]:,.0f}", f"{plain:,.0f}", f"{ratio:.2f}")
    step = Table(title="milliseconds a decoding step")
    for heading in ("rows", "engine", "bare forward"):
        step.add_column(heading, justify="right")
    for rows, milliseconds in steps.items():
        step.add_row(str(rows), f"{milliseconds:.2f}", f"{forward_milliseconds(model, rows):.2f}")
    console = Console()
    console.print(table)
    console.print(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder; by default the bundled one, else random weights")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report(arguments.model or bundled() or random_model(Path(scratch) / "random"), arguments.repeat)


if __name__ == "__main__":
    main()
