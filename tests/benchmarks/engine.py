"""Tokens a second of the torch engine beside ``model.generate``, on equal and on ragged lengths.

    python -m tests.benchmarks.engine [--model NAME] [--repeat 5]

Equal: 64 requests of 32 tokens. Ragged: 256 requests over 64 slots, lengths log-normal and capped at 128;
``generate`` runs them as four batches of 64, each padded to its longest. Every request has a prompt of its
own and samples at temperature 1. The engine is asked through its contract, from an event loop.

The last table is what ``inference.backend.reproducible`` costs: a decoding step, and the load of equal lengths, with it
and without, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tests.benchmarks.models import folder_of, is_registered
from tests.benchmarks.taken import Taken
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.loading import threads_for
from agentrl.inference.model_folder import no_progress_bars

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


async def ask(backend: TorchBackend, load: Load, round_: int) -> None:
    """All requests of a load at once."""

    async def one(prompt: list[int], length: int, seed: int) -> None:
        request = GenerationRequest(prompt, Sampling(max_tokens=length, seed=seed))
        async for chunk in backend.generate(request):
            assert len(chunk.ids) == length

    # Another first token each time: nothing of the round before is found in the prefix cache.
    prompts = [[round_, *prompt[1:]] for prompt in load.prompts]
    await asyncio.gather(*(one(*row) for row in zip(prompts, load.lengths, range(len(prompts)), strict=True)))


def generate(model: PreTrainedModel, load: Load) -> None:
    """The same by ``model.generate``, 64 at a time."""
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


async def compare(backend: TorchBackend, model: PreTrainedModel, load: Load, repeat: int) -> tuple[Taken, Taken]:
    """Engine's and ``generate``'s, each the best of rounds that alternate: what else runs here disturbs both alike."""
    engine, plain = [], []
    for round_ in range(repeat + 1):
        begun = Taken.now()
        await ask(backend, load, round_)
        between = Taken.now()
        generate(model, load)
        engine.append(between.since(begun))
        plain.append(Taken.now().since(between))
    return Taken.best(engine[1:]), Taken.best(plain[1:])


async def step_taken(backend: TorchBackend, rows: int, tokens: int = 64) -> Taken:
    """Of a step of the engine, sampling and bookkeeping included, the best of three runs.

    Wall time is what the engine was busy for; CPU is that of the whole process, clients of one chunk a token included.
    """

    async def one(seed: int) -> None:
        async for _ in backend.generate(GenerationRequest([seed], Sampling(max_tokens=tokens, seed=seed))):
            pass

    runs = []
    for _ in range(3):
        before, begun = backend.counters(), Taken.now()
        await asyncio.gather(*(one(seed) for seed in range(rows)))
        after, cpu = backend.counters(), Taken.now().since(begun).cpu
        steps = after.steps - before.steps
        runs.append(Taken((after.busy_seconds - before.busy_seconds) / steps, cpu / steps))
    return Taken.best(runs)


@torch.inference_mode()
def forward_taken(model: PreTrainedModel, rows: int, tokens: int = 64) -> Taken:
    """Of the plain forward of one token a row, over a cache that grows as the engine's does."""
    runs = []
    for _ in range(3):
        cache = DynamicCache(config=model.config)
        begun = Taken.now()
        for _ in range(tokens):
            model(torch.ones((rows, 1), dtype=torch.long), past_key_values=cache, use_cache=True)
        taken = Taken.now().since(begun)
        runs.append(Taken(taken.wall / tokens, taken.cpu / tokens))
    return Taken.best(runs)


async def reproducible_taken(folder: Path, load: Load, repeat: int) -> Table:
    """What ``reproducible`` costs: the best of rounds that alternate between two engines."""
    backends = []
    for reproducible in (True, False):
        options = {"reproducible": reproducible, "device": "cpu"}
        backends.append(TorchBackend(BackendContext(folder, max_concurrency=SLOTS, options=options)))
        await backends[-1].start()
    table = _table("cost of reproducible", "what", "with, ms", "CPU", "without, ms", "CPU", "ratio", "by CPU")
    for rows in (1, 8, 37, SLOTS):
        rounds = [[await step_taken(backend, rows) for backend in backends] for _ in range(repeat)]
        table.add_row(f"step of {rows} rows", *_compared(*(Taken.best(each) for each in zip(*rounds, strict=True))))
    taken: list[list[Taken]] = [[], []]
    for round_ in range(repeat + 1):
        for backend, side in zip(backends, taken, strict=True):
            begun = Taken.now()
            await ask(backend, load, round_)
            side.append(Taken.now().since(begun))
    table.add_row(f"{load.tokens:,} tokens", *_compared(*(Taken.best(side[1:]) for side in taken)))
    for backend in backends:
        await backend.stop()
    return table


def _compared(with_it: Taken, without: Taken) -> list[str]:
    times = [f"{1000 * seconds:.2f}" for taken in (with_it, without) for seconds in (taken.wall, taken.cpu)]
    return [*times, f"{with_it.wall / without.wall:.2f}", f"{with_it.cpu / without.cpu:.2f}"]


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
    with no_progress_bars():
        Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


async def measured(folder: Path, repeat: int) -> tuple[Table, Table, Table]:
    """Tokens a second, milliseconds a decoding step, and what reproducible numbers cost."""
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Both sides get the threads that suit the model: two are slower than one for a small model.
    torch.set_num_threads(threads_for(model))
    sides = ("engine", "generate", "ratio")
    rates = _table(f"tokens a second: {folder.name}", "load", "tokens", *sides, *(f"{side}, by CPU" for side in sides))
    steps = _table("milliseconds a decoding step", "rows", "engine", "CPU", "plain forward", "CPU")
    backend = TorchBackend(BackendContext(folder, max_concurrency=SLOTS))
    await backend.start()
    for load in loads(model.config.vocab_size):
        engine, plain = await compare(backend, model, load, repeat)
        wall = [f"{load.tokens / taken.wall:,.0f}" for taken in (engine, plain)]
        cpu = [f"{load.tokens / taken.cpu:,.0f}" for taken in (engine, plain)]
        ratios = f"{plain.wall / engine.wall:.2f}", f"{plain.cpu / engine.cpu:.2f}"
        rates.add_row(load.name, f"{load.tokens:,}", *wall, ratios[0], *cpu, ratios[1])
    for rows in (1, 8, SLOTS):
        both = await step_taken(backend, rows), forward_taken(model, rows)
        steps.add_row(str(rows), *(f"{1000 * seconds:.2f}" for taken in both for seconds in (taken.wall, taken.cpu)))
    await backend.stop()
    return rates, steps, await reproducible_taken(folder, loads(model.config.vocab_size)[0], repeat)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model's name or folder; by default the bundled one, else random weights")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        name = arguments.model or ("tiny" if is_registered("tiny") else None)
        folder = folder_of(name) if name else random_model(Path(scratch) / "random")
        for table in asyncio.run(measured(folder, arguments.repeat)):
            Console().print(table)


if __name__ == "__main__":
    main()
