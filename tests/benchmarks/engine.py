"""Tokens a second of the torch engine beside ``model.generate``, on equal and on ragged lengths, and beside the limit.

    python -m tests.benchmarks.engine [--model NAME] [--repeat 5] [--dtypes float32 bfloat16] [--parts equal steps]

Equal: 64 requests of 32 tokens. Ragged: 256 requests over 64 slots, lengths log-normal and capped at 128;
``generate`` runs them as four batches of 64, each padded to its longest. Every request has a prompt of its
own and samples at temperature 1. The engine is asked through its contract, from an event loop.

The limit is what the matrix products alone take, of the same rows with each of the model's own weights in turn, in the
quicker of two orders of memory, measured in the same rounds. Beside it stands the mismatch KL: how far the sampled
tokens' log-probabilities are from those of the plain forward in the same type, which is what the learner computes.

The last table is what ``inference.backend.reproducible`` costs: a decoding step, and the load of equal lengths, with it
and without, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tests.benchmarks.models import folder_of, is_registered
from tests.benchmarks.taken import Taken
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from agentrl.inference.contract import BackendContext, Chunk, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.loading import threads_for
from agentrl.inference.model_folder import no_progress_bars
from agentrl.machine import has_bfloat16_units

SLOTS = 64
PROMPT = 24
PARTS = ("equal", "ragged", "steps", "reproducible")


@dataclass(frozen=True)
class Load:
    """Prompts and how many tokens to sample after each."""

    name: str
    prompts: list[list[int]]
    lengths: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def loads(vocabulary: int, tokens: int) -> list[Load]:
    generator = random.Random(0)
    ragged = [max(1, min(128, round(generator.lognormvariate(3.0, 0.9)))) for _ in range(4 * SLOTS)]
    made = []
    for name, lengths in (("equal", [tokens] * SLOTS), ("ragged", ragged)):
        prompts = [[generator.randrange(vocabulary) for _ in range(PROMPT)] for _ in lengths]
        made.append(Load(name, prompts, lengths))
    return made


class Products:
    """The matrix products of a forward, by themselves."""

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        weights = [each.weight for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not head]
        self._orders = [weights, [weight.t().contiguous().t() for weight in weights]]
        self._head = [head.weight, head.weight.t().contiguous().t()]

    @torch.inference_mode()
    def taken(self, rows: int, *, head: bool) -> Taken:
        """Of products of so many rows with every weight, with the vocabulary's or without."""
        inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1], dtype=weight.dtype) for weight in self._orders[0]}
        inputs[self._head[0].shape[1]] = torch.randn(rows, self._head[0].shape[1], dtype=self._head[0].dtype)
        taken = []
        for weights, vocabulary in zip(self._orders, self._head, strict=True):
            begun = Taken.now()
            for weight in [*weights, vocabulary] if head else weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            taken.append(Taken.now().since(begun))
        return Taken.best(taken)

    def of_load(self, load: Load) -> Taken:
        """Of the products of a load in rows that are always full."""
        steps, prefills = load.tokens / SLOTS, len(load.prompts) / SLOTS
        step, prefill = self.taken(SLOTS, head=True), self.taken(SLOTS * (PROMPT - 1), head=False)
        return Taken(steps * step.wall + prefills * prefill.wall, steps * step.cpu + prefills * prefill.cpu)


async def ask(backend: TorchBackend, load: Load, round_: int) -> list[tuple[list[int], Chunk]]:
    """All requests of a load at once. Returns their prompts and completions."""

    async def one(prompt: list[int], length: int, seed: int) -> tuple[list[int], Chunk]:
        request = GenerationRequest(prompt, Sampling(max_tokens=length, seed=seed))
        (chunk,) = [chunk async for chunk in backend.generate(request)]
        assert len(chunk.ids) == length
        return prompt, chunk

    # Other tokens each time: nothing of the round before is found in the prefix cache.
    prompts = [[round_, *prompt[1:]] for prompt in load.prompts]
    return await asyncio.gather(*(one(*row) for row in zip(prompts, load.lengths, range(len(prompts)), strict=True)))


@torch.inference_mode()
def mismatch_kl(model: PreTrainedModel, sampled: list[tuple[list[int], Chunk]]) -> float:
    """The estimate of ``policy/mismatch_kl``, of completions of one length after prompts of one length."""
    prompts, chunks = zip(*sampled, strict=True)
    ids = torch.tensor([[*prompt, *chunk.ids] for prompt, chunk in sampled])
    logits = model(ids, use_cache=False).logits[:, len(prompts[0]) - 1 : -1].float()
    chosen = logits.log_softmax(-1).gather(2, ids[:, len(prompts[0]) :, None])[:, :, 0].double()
    log_ratio = chosen - torch.tensor([chunk.logprobs for chunk in chunks], dtype=torch.float64)
    return float((log_ratio.expm1() - log_ratio).mean())


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


async def compare(
    backend: TorchBackend, model: PreTrainedModel, products: Products, load: Load, repeat: int
) -> tuple[Taken, Taken, Taken]:
    """Engine's, ``generate``'s and the products' alone, each the best of rounds that alternate: what else runs here
    disturbs all alike."""
    engine, plain, limit = [], [], []
    for round_ in range(repeat + 1):
        begun = Taken.now()
        await ask(backend, load, round_)
        between = Taken.now()
        generate(model, load)
        engine.append(between.since(begun))
        plain.append(Taken.now().since(between))
        limit.append(products.of_load(load))
    return Taken.best(engine[1:]), Taken.best(plain[1:]), Taken.best(limit)


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


async def measured(
    folder: Path, repeat: int, dtype: torch.dtype, parts: Sequence[str], tokens: int
) -> AsyncIterator[Table]:
    """Yields tokens a second, milliseconds a decoding step, and what reproducible numbers cost."""
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    name = str(dtype).removeprefix("torch.")
    # Both sides get the threads that suit the model: two are slower than one for a small model.
    torch.set_num_threads(threads_for(model))
    products, loaded = Products(model), loads(model.config.vocab_size, tokens)
    backend = TorchBackend(BackendContext(folder, max_concurrency=SLOTS, options={"dtype": name, "device": "cpu"}))
    await backend.start()
    wanted = [load for load in loaded if load.name in parts]
    if wanted:
        sides = ("engine", "generate", "ratio")
        columns = ("load", "tokens", *sides, *(f"{side}, by CPU" for side in sides))
        shares = _table(
            "of what the products alone would reach", "load", "limit", *sides[:2], "limit, by CPU", *sides[:2]
        )
        rates = _table(f"tokens a second: {folder.name}, {name}", *columns)
        for load in wanted:
            engine, plain, limit = await compare(backend, model, products, load, repeat)
            wall = [f"{load.tokens / taken.wall:,.0f}" for taken in (engine, plain)]
            cpu = [f"{load.tokens / taken.cpu:,.0f}" for taken in (engine, plain)]
            ratios = f"{plain.wall / engine.wall:.2f}", f"{plain.cpu / engine.cpu:.2f}"
            rates.add_row(load.name, f"{load.tokens:,}", *wall, ratios[0], *cpu, ratios[1])
            by_wall = [
                f"{load.tokens / limit.wall:,.0f}",
                *(f"{limit.wall / each.wall:.2f}" for each in (engine, plain)),
            ]
            by_cpu = [f"{load.tokens / limit.cpu:,.0f}", *(f"{limit.cpu / each.cpu:.2f}" for each in (engine, plain))]
            shares.add_row(load.name, *by_wall, *by_cpu)
        yield rates
        yield shares
        table = _table("mismatch KL, nats a token", "sampled", "plain forward", "KL")
        table.add_row(name, name, f"{mismatch_kl(model, await ask(backend, loaded[0], repeat + 1)):.1e}")
        yield table
    if "steps" in parts:
        columns = ("rows", "engine", "CPU", "plain forward", "CPU", "products", "CPU", "of limit", "by CPU")
        steps = _table(f"milliseconds a decoding step: {name}", *columns)
        for rows in (1, 8, SLOTS):
            rounds = []
            for _ in range(repeat):
                limit = Taken.best([products.taken(rows, head=True) for _ in range(5)])
                rounds.append(
                    (await step_taken(backend, rows, 2 * tokens), forward_taken(model, rows, 2 * tokens), limit)
                )
            each = [Taken.best([sides[side] for sides in rounds]) for side in range(3)]
            taken = [f"{1000 * seconds:.2f}" for side in each for seconds in (side.wall, side.cpu)]
            shares = f"{each[2].wall / each[0].wall:.2f}", f"{each[2].cpu / each[0].cpu:.2f}"
            steps.add_row(str(rows), *taken, *shares)
        yield steps
    await backend.stop()
    if "reproducible" in parts and dtype == torch.float32:
        yield await reproducible_taken(folder, loaded[0], repeat)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model's name or folder; by default the bundled one, else random weights")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="sampled by each request of equal length")
    types = ["float32", "bfloat16"] if has_bfloat16_units() else ["float32"]
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=types)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()

    async def printed(folder: Path) -> None:
        for dtype in arguments.dtypes:
            given = arguments.repeat, getattr(torch, dtype), arguments.parts, arguments.tokens
            async for table in measured(folder, *given):
                Console().print(table)

    with tempfile.TemporaryDirectory() as scratch:
        name = arguments.model or ("tiny" if is_registered("tiny") else None)
        asyncio.run(printed(folder_of(name) if name else random_model(Path(scratch) / "random")))


if __name__ == "__main__":
    main()
