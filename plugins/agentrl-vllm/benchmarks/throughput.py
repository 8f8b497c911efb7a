"""Tokens a second through agents, gateway and plugin, beside the same requests sent straight to the server.

    python -m benchmarks.throughput [--tokens 64] [--turns 2] [--episodes 256] [--concurrency 64] [--rounds 5]

An agent with an ``AsyncOpenAI`` client converses, inline and in a training session; what it made the plugin post is
then posted again by a minimal client: same ids, same sampling, same order of turns, as many episodes at once. Each side
begins with an empty prefix cache. *Equal*: all completions have ``--tokens`` tokens, so that answers come in bursts, at
which the server waits for all of them. *Ragged*: half to three halves of it, as in a run. The model never ends by
itself; it has two layers, so that a server spends less on a token than on any real model, and all else weighs the most.

Sides take turns; ratios are medians of those of each round: of speeds, and of the CPU time of all processes, this one
and the server's, which other work on the machine disturbs least. *Queued* is how much of a round this process was ready
to run and had no core: where that is much, the machine has too few or is not quiet, and the speeds say little. To
reach: 0.9 of the straight requests' speed, at 64 episodes at once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from agentrl.gateway import EngineCompleter, Gateway
from agentrl.tokens.selection import load_renderer
from benchmarks.episodes import Recorder, conversations, run_episodes
from benchmarks.models import endless_model
from benchmarks.served import Served, serving
from benchmarks.straight import Straight, payloads

LOADS = {"equal": False, "ragged": True}
SIDES = ("whole path", "straight")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a side's round took."""

    tokens: int
    wall: float
    """Seconds."""
    here: float
    """Seconds of this process's CPU."""
    server: float
    """Seconds of the server's CPU."""
    queued: float
    """Seconds for which this process waited for a core."""

    @property
    def speed(self) -> float:
        return self.tokens / self.wall

    @property
    def speed_by_cpu(self) -> float:
        """Tokens a second of CPU."""
        return self.tokens / (self.here + self.server)


@dataclass(frozen=True, slots=True)
class Bench:
    """Both ways to one server."""

    served: Served
    recorder: Recorder
    gateway: Gateway
    straight: Straight
    options: argparse.Namespace

    async def round(self, number: int, *, ragged: bool) -> tuple[Taken, Taken]:
        """Both sides of the same requests."""
        options = self.options
        tasks = conversations(
            options.episodes, turns=options.turns, tokens=options.tokens, ragged=ragged, number=number
        )
        whole = await self._taken(lambda: run_episodes(self.gateway, tasks, options.concurrency))
        bodies = payloads(self.recorder.taken(), self.served.capabilities)
        straight = await self._taken(lambda: self.straight.run(bodies, options.concurrency))
        return whole, straight

    async def _taken(self, side: Callable[[], Awaitable[int]]) -> Taken:
        await self.served.forget()
        gc.collect()
        here, server, queued, begun = time.process_time(), server_cpu(), waited(), time.perf_counter()
        tokens = await side()
        wall = time.perf_counter() - begun
        return Taken(tokens, wall, time.process_time() - here, server_cpu() - server, waited() - queued)


def server_cpu() -> float:
    """CPU seconds of all processes that this one has started and that run."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


def waited() -> float:
    """Seconds that this thread has waited for a core, as Linux counts them; 0 elsewhere."""
    counts = Path("/proc/thread-self/schedstat")
    return int(counts.read_text().split()[1]) / 1e9 if counts.exists() else 0.0


async def measured(folder: Path, options: argparse.Namespace) -> dict[str, list[tuple[Taken, Taken]]]:
    """Rounds of each load, after one that warms up."""
    async with serving(folder, concurrency=options.concurrency, threads=options.threads) as served:
        renderer = load_renderer(folder)
        recorder = Recorder(served.backend)
        gateway = Gateway(EngineCompleter(recorder, served.capabilities, renderer))
        straight = Straight(served.urls[0])
        bench = Bench(served, recorder, gateway, straight, options)
        await bench.round(0, ragged=True)
        rounds: dict[str, list[tuple[Taken, Taken]]] = {name: [] for name in LOADS}
        for number in range(1, options.rounds + 1):
            for name, ragged in LOADS.items():
                rounds[name].append(await bench.round(number, ragged=ragged))
        straight.close()
        gateway.stop()
    return rounds


def table(rounds: dict[str, list[tuple[Taken, Taken]]], options: argparse.Namespace) -> Table:
    calls = options.episodes * options.turns
    made = Table(
        title=f"{options.episodes} episodes, {options.concurrency} at once, of {options.turns} calls "
        f"of {options.tokens} tokens; medians of {options.rounds} rounds"
    )
    for heading in ("load", "side"):
        made.add_column(heading)
    for heading in ("tokens/s", "of straight", "by CPU", "CPU ms a call", "the server's", "queued"):
        made.add_column(heading, justify="right")
    for load, pairs in rounds.items():
        speeds = [whole.speed / straight.speed for whole, straight in pairs]
        by_cpu = [whole.speed_by_cpu / straight.speed_by_cpu for whole, straight in pairs]
        ratios = [f"{statistics.median(each):.2f}" for each in (speeds, by_cpu)]
        for name, side, compared in zip(SIDES, zip(*pairs, strict=True), (ratios, ["", ""]), strict=True):
            speed = statistics.median(taken.speed for taken in side)
            here = 1000 * statistics.median(taken.here for taken in side) / calls
            server = 1000 * statistics.median(taken.server for taken in side) / calls
            queued = statistics.median(taken.queued / taken.wall for taken in side)
            made.add_row(load, name, f"{speed:,.0f}", *compared, f"{here:.2f}", f"{server:.2f}", f"{queued:.0%}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64, help="of a call")
    parser.add_argument("--turns", type=int, default=2, help="calls of an episode")
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=64, help="episodes at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2, help="of the model")
    parser.add_argument("--threads", type=int, default=1, help="that the server computes with, on a CPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = endless_model(Path(scratch) / "endless", layers=options.layers)
        rounds = asyncio.run(measured(folder, options))
    Console(width=120).print(table(rounds, options))


if __name__ == "__main__":
    main()
