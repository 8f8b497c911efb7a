"""Seconds from the learner's step to the first token of its weights, part by part.

    python -m benchmarks.updates [--updates 8] [--under-way 64] [--tokens 256]

The clock begins where the learner has stepped and ends at the first token of a request that is sent as soon as
``update_weights`` has returned, as a rollout's first is. *Write* is into shared memory, *check* has the server's worker
look at the files, *load* puts them in place, *stamp* has the version confirmed, and *cache* is the check of the prefix
cache, for which requests need not wait. *Under way* are requests of ``--tokens`` tokens, each followed by the next,
which go on with what they have computed; the new request has a place beside them.

*Proof* is what a run does next, while requests go on: it has the server tell the digest of every tensor and score a few
tokens, and the learner do the same.

*Start* is what a server of the same model takes to start, its cost where new weights came with a restart. Of a tiny
model that is Python importing vLLM; a larger one adds to both. Parts are medians; the ratio is of medians too. *CPU* is
what this process and the server have computed meanwhile, for the requests under way too; all else is the time that
passes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from agentrl.inference.contract import GenerationRequest, Sampling
from agentrl.testing.backends.reference import Reference, load_reference
from agentrl.testing.parts import model_folder
from agentrl.training.proof import Recorded, UpdateProof
from agentrl_vllm import control
from agentrl_vllm.cache_check import CacheCheck
from agentrl_vllm.folders import WeightFolders
from benchmarks.models import endless_model
from benchmarks.served import Served, serving
from benchmarks.throughput import server_cpu

PARTS = ("write", "check", "pause", "load", "stamp", "resume", "cache", "first token")
LARGER = {
    "layers": 8,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""Of a model with 100 MB of float32 weights."""
PROMPT = 64
"""Tokens."""

Seconds = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """A model's updates under one load."""

    model: str
    load: str
    start: float
    """Seconds that its server took to start."""
    updates: Sequence[Seconds]
    """Of each update, its parts and the ``total``; and the ``proof`` after it."""

    def median(self, part: str) -> float:
        return statistics.median(update[part] for update in self.updates)


class Stopwatch:
    """Seconds of the parts of an update, read where the plugin does them."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the plugin's own functions while it is entered."""
        calls = {"check": control.check, "pause": control.pause, "load": control.replace, "stamp": control.stamp}
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            for part, function in {**calls, "resume": control.resume}.items():
                enter(patch.object(control, function.__name__, self._awaited(part, function)))
            enter(patch.object(CacheCheck, "after_update", self._awaited("cache", CacheCheck.after_update)))
            enter(patch.object(WeightFolders, "write", self._called("write", WeightFolders.write)))
            yield

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - begun

    def taken(self) -> Seconds:
        """What there is, which is forgotten here."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def _awaited(self, part: str, function: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        @functools.wraps(function)
        async def timed(*args: object, **kwargs: object) -> object:
            with self.part(part):
                return await function(*args, **kwargs)

        return timed

    def _called(self, part: str, function: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(function)
        def timed(*args: object, **kwargs: object) -> object:
            with self.part(part):
                return function(*args, **kwargs)

        return timed


async def first_token(served: Served, request: GenerationRequest, version: int) -> None:
    """Return when it is there."""
    async with aclosing(served.backend.generate(request)) as chunks:
        chunk = await anext(chunks)
    if set(chunk.versions) != {version}:
        raise RuntimeError(f"a token after the update to version {version} is of {chunk.versions}")


@contextlib.asynccontextmanager
async def under_way(served: Served, count: int, tokens: int) -> AsyncIterator[None]:
    """Keep ``count`` requests under way."""

    async def follow(number: int) -> None:
        for turn in itertools.count():
            request = GenerationRequest(_prompt(number), Sampling(max_tokens=tokens, seed=turn))
            async for _ in served.backend.generate(request):
                pass

    tasks = [asyncio.create_task(follow(number)) for number in range(count)]
    try:
        while tasks and await served.counted("num_requests_running") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _prompt(number: int) -> list[int]:
    """One for each number: nothing is taken from another one's cache."""
    return [number % 256, *range(1, PROMPT)]


async def updated(served: Served, stopwatch: Stopwatch, new: Reference, proof: UpdateProof) -> Seconds:
    """The parts of one update to ``new``, and its proof."""
    request = GenerationRequest(_prompt(new.version), Sampling(max_tokens=2, seed=0), stream=True)
    before = time.process_time() + server_cpu()
    with stopwatch.part("total"):
        with new.weights as weights:
            await served.backend.update_weights(weights)
        with stopwatch.part("first token"):
            await first_token(served, request, new.version)
    cpu = time.process_time() + server_cpu() - before
    with stopwatch.part("proof"), new.weights as weights:
        await proof.prove(served.backend, weights, request.prompt_ids)
    return {**stopwatch.taken(), "CPU": cpu}


async def measured(name: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    """A row for the idle server, and one for the busy."""
    reference = load_reference(folder)
    models = itertools.cycle([reference.changed(), reference])
    versions = itertools.count(1)
    stopwatch, rows = Stopwatch(), []
    async with serving(folder, concurrency=options.under_way + 1) as served:
        proof = UpdateProof(warn=print)
        with reference.weights as weights:
            await proof.prepare(served.backend, weights, Recorded(_prompt(0), _prompt(1)))
        with stopwatch.watching():
            for load, count in (("idle", 0), (f"{options.under_way} under way", options.under_way)):
                async with under_way(served, count, options.tokens):
                    updates = []
                    for _ in range(1 + options.updates):
                        new = replace(next(models), version=next(versions))
                        updates.append(await updated(served, stopwatch, new, proof))
                        await asyncio.sleep(options.pause)
                rows.append(Row(name, load, served.start_s, updates[1:]))
    return rows


def table(rows: Sequence[Row]) -> Table:
    made = Table(title="from the learner's step to the first token of its weights, milliseconds")
    for heading in ("model", "load"):
        made.add_column(heading)
    for heading in (*PARTS, "all", "CPU", "proof", "start s", "start / all"):
        made.add_column(heading, justify="right")
    for row in rows:
        parts = [f"{1000 * row.median(part):.0f}" for part in (*PARTS, "total", "CPU", "proof")]
        ratio = row.start / row.median("total")
        made.add_row(row.model, row.load, *parts, f"{row.start:.0f}", f"{ratio:,.0f}")
    return made


def megabytes(folder: Path) -> float:
    """Of its weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=8, help="of each row; one more warms up")
    parser.add_argument("--under-way", type=int, default=64, help="requests while a busy server is updated")
    parser.add_argument("--tokens", type=int, default=256, help="of each of them")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two updates")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        larger = endless_model(Path(scratch) / "larger", **LARGER)
        folders = {"tiny": model_folder("tiny"), f"{megabytes(larger):.0f} MB": larger}
        rows = [row for name, folder in folders.items() for row in asyncio.run(measured(name, folder, options))]
    # As wide as it is, also where nobody looks at it on a terminal.
    Console(width=160).print(table(rows))


if __name__ == "__main__":
    main()
