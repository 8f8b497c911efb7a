"""Tokens a second through agents, gateway and plugin, beside the same requests sent straight to the server.

    python -m benchmarks.throughput [--tokens 64] [--turns 2] [--episodes 256] [--concurrency 64] [--rounds 5]

An agent with an ``AsyncOpenAI`` client converses, inline and in a training session; what it made the plugin post is
then posted again by a lean client: same ids, same sampling, same order of turns, as many episodes at once. Each side
begins with an empty prefix cache. *Equal*: all completions have ``--tokens`` tokens, so that answers come in bursts, at
which the server waits for all of them. *Ragged*: half to three halves of it, as in a run. The model never ends by
itself; it has two layers, so that a server spends less on a token than on any real model, and all else weighs the most.

Sides take turns; the ratio is the median of those of each round. CPU milliseconds are of this process, and of the
server's processes. To reach: 0.9 of the straight requests' speed, at 64 episodes at once.
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
from benchmarks.episodes import Recorder, conversations, run_episodes
from benchmarks.models import endless_model
from benchmarks.serving import Served, serving
from benchmarks.straight import Straight, payloads
from rich.console import Console
from rich.table import Table

from agentrl.gateway import Gateway
from agentrl.tokens.renderer import load_renderer

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

    @property
    def speed(self) -> float:
        return self.tokens / self.wall


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
        here, server, begun = time.process_time(), server_cpu(), time.perf_counter()
        tokens = await side()
        wall = time.perf_counter() - begun
        return Taken(tokens, wall, time.process_time() - here, server_cpu() - server)


def server_cpu() -> float:
    """CPU seconds of all processes that this one has started and that run."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


async def measured(folder: Path, options: argparse.Namespace) -> dict[str, list[tuple[Taken, Taken]]]:
    """Rounds of each load, after one that warms up."""
    async with serving(folder, concurrency=options.concurrency) as served:
        renderer = load_renderer(folder)
        recorder = Recorder(served.backend)
        gateway = Gateway(recorder, served.capabilities, renderer)
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
    for heading in ("tokens/s", "of straight", "CPU ms a call", "the server's"):
        made.add_column(heading, justify="right")
    for load, pairs in rounds.items():
        ratios = [whole.speed / straight.speed for whole, straight in pairs]
        for name, side, ratio in zip(
            SIDES, zip(*pairs, strict=True), (f"{statistics.median(ratios):.2f}", ""), strict=True
        ):
            cpu = (1000 * statistics.median(seconds) / calls for seconds in _cpu(side))
            speed = statistics.median(taken.speed for taken in side)
            made.add_row(load, name, f"{speed:,.0f}", ratio, *(f"{milliseconds:.2f}" for milliseconds in cpu))
    return made


def _cpu(side: tuple[Taken, ...]) -> tuple[list[float], list[float]]:
    return [taken.here for taken in side], [taken.server for taken in side]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64, help="of a call")
    parser.add_argument("--turns", type=int, default=2, help="calls of an episode")
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=64, help="episodes at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2, help="of the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = endless_model(Path(scratch) / "endless", layers=options.layers)
        rounds = asyncio.run(measured(folder, options))
    Console().print(table(rounds, options))


if __name__ == "__main__":
    main()
