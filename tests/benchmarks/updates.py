"""Seconds from the learner's step to the first token of its weights, in the torch engine.

    python -m tests.benchmarks.updates [--model NAME] [--updates 9] [--under-way 64]

The clock begins where the learner has stepped. *Update* ends when ``update_weights`` returns, *new* at the first token
of a request that is sent then, and *under way* at the first token of the new weights in each of the requests that were
there before, which go on with the KV that they have: the last of them is told. Each is the median over the updates,
with no other request and beside ``--under-way`` of them; *start* is what the same engine takes to start, its cost where
new weights came with a restart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.benchmarks.models import folder_of

from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.testing.backends.reference import Reference, load_reference

PROMPT, TOKENS = 64, 96


class Crowd:
    """Requests that follow each other without end, and when each had its first token of a version."""

    def __init__(self, backend: TorchBackend, count: int) -> None:
        self._backend = backend
        self._count = count
        self._reached: dict[int, float] = {}
        self._version = 0
        self._all = asyncio.Event()
        self._begun = 0

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._follow(number)) for number in range(self._count)]
        while self._begun < self._count:  # noqa: ASYNC110 - a benchmark may look again
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def expect(self, version: int) -> None:
        """From now on tokens of ``version`` are waited for."""
        self._version = version
        self._reached = {}
        self._all = asyncio.Event()

    async def reached(self) -> float:
        """When the last request had its first token of the version; now where there are none."""
        if self._count:
            await self._all.wait()
        return max(self._reached.values(), default=time.perf_counter())

    async def _follow(self, number: int) -> None:
        for turn in itertools.count():
            request = GenerationRequest(_prompt(number), Sampling(max_tokens=TOKENS, seed=turn))
            async for chunk in self._backend.generate(request):
                if turn == 0 and chunk.ids and self._begun < self._count:
                    self._begun += 1
                if self._version in chunk.versions and number not in self._reached:
                    self._reached[number] = time.perf_counter()
                    if len(self._reached) == self._count:
                        self._all.set()


async def measure(folder: Path, reference: Reference, count: int, updates: int) -> tuple[float, list[list[float]]]:
    """Seconds of the start, and for each update those of its parts."""
    backend = TorchBackend(BackendContext(folder, max_concurrency=count + 1))
    began = time.perf_counter()
    await backend.start()
    start = time.perf_counter() - began
    crowd = Crowd(backend, count)
    found = []
    try:
        async with crowd.going_on():
            for version in range(1, updates + 1):
                crowd.expect(version)
                stepped = time.perf_counter()
                with replace(reference, version=version).weights as weights:
                    await backend.update_weights(weights)
                updated = time.perf_counter()
                async with contextlib.aclosing(
                    backend.generate(GenerationRequest(_prompt(1000 + version), Sampling(max_tokens=1)))
                ) as chunks:
                    chunk = await anext(chunks)
                new = time.perf_counter()
                if set(chunk.versions) != {version}:
                    raise SystemExit(f"a token after the update to version {version} is of {chunk.versions}")
                found.append([updated - stepped, new - stepped, await crowd.reached() - stepped])
    finally:
        await backend.stop()
    return start, found


def _prompt(number: int) -> list[int]:
    """Tokens that no other number's prompt begins with."""
    return [number % 997, number // 997 + 1, *range(100, 98 + PROMPT)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.updates", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a registered model, or a folder")
    parser.add_argument("--updates", type=int, default=9)
    parser.add_argument("--under-way", type=int, default=64, help="requests beside the update")
    given = parser.parse_args()
    folder = folder_of(given.model)
    reference = load_reference(folder)
    table = Table(title=f"from a step to tokens of its weights, {given.model}, ms")
    for column in ("requests", "update", "new", "under way", "start"):
        table.add_column(column, justify="right")
    for count in (0, given.under_way):
        start, found = asyncio.run(measure(folder, reference, count, given.updates))
        medians = [statistics.median(part) * 1e3 for part in zip(*found, strict=True)]
        last = f"{medians[2]:.1f}" if count else ""
        table.add_row(str(count), f"{medians[0]:.1f}", f"{medians[1]:.1f}", last, f"{start * 1e3:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
