"""What many agents at once cost: CPU a call with 64 and with 2,000 in flight, waits, memory, and 10,000 open sessions.

The same episodes of a few calls are rolled out by the real dispatcher before a gateway whose engine answers at once, in
turns with few and with many in flight: what a call costs must not depend on how many others are there. *run* is the CPU
of the process with gateway and dispatcher, *agents* that of the processes that run agents. Agents are coroutines, in
two worker processes (``subproc``) or in the run's own (``inline``); they call through the plain OpenAI SDK (*sdk*) or,
where that itself is most of the cost, over bare sockets (*raw*). Calls are made without a pause, so that p50 and p99
are those of a gateway that always has work; with ``--think`` each agent waits between two calls. *memory* is what the
run's process holds beyond its beginning, at its most, by episode in flight.

*sessions* opens 10,000 sessions, makes one call in each over 64 kept connections, and closes them.

    python -m tests.benchmarks.scale [--few 64] [--many 2000] [--turns 4] [--rounds 3] [--sessions 10000] [NAME ...]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.benchmarks.gateway import ASK, MORE, SYSTEM, BareClient
from tests.benchmarks.sides import many_agents
from tests.benchmarks.sides.served import CONTEXT, InstantBackend, Served

import agentrl_agents
from agentrl.agents.binding import bind_agent
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.rollout.contract import AgentRunner, Episode, EpisodeKey
from agentrl.rollout.dispatcher import Dispatcher, FailureBudget, GroupRequest
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineRunner
from agentrl.rollout.subproc.executor import SubprocRunner
from agentrl.rollout.subproc.interpreter import AgentLaunch, worker_environment
from agentrl.tokens.selection import load_renderer
from agentrl.training.serving import frozen_heap

WORKERS = 2
WAYS = ("subproc raw", "subproc sdk", "inline sdk")


@dataclass(frozen=True)
class Spent:
    """What a round has taken: milliseconds a call, and bytes."""

    run: float
    agents: float
    wall: float
    collected: float
    """Of ``run``, what went into garbage collection."""
    waits: list[float]
    memory: float
    """By episode in flight."""


class Collected:
    """Seconds of garbage collection in this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0
        gc.callbacks.append(self._take)

    def _take(self, phase: str, info: object) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self.seconds += time.thread_time() - self._began


@contextlib.contextmanager
def watched(process: psutil.Process) -> Iterator[list[int]]:
    """The memory of ``process`` every now and then, within the block."""
    seen, ended = [process.memory_info().rss], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            seen.append(process.memory_info().rss)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    yield seen
    ended.set()
    looking.join()


class Rollout:
    """Rolls out batches of episodes of one way."""

    def __init__(self, way: str, gateway: Gateway, options: argparse.Namespace, collected: Collected) -> None:
        self.executor, self.client = way.split()
        self._gateway = gateway
        self._options = options
        self._collected = collected
        self._numbers = itertools.count()
        self._process = psutil.Process()

    @contextlib.asynccontextmanager
    async def runner(self, in_flight: int) -> AsyncIterator[AgentRunner]:
        if self.executor == "inline":
            yield InlineRunner(bind_agent(getattr(many_agents, self.client), {}, name=self.client))
            return
        python = Path(sys.executable)
        environ = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin"}
        launch = AgentLaunch(
            f"{many_agents.__name__}:{self.client}", {}, python, worker_environment((), environ, python=python)
        )
        with tempfile.TemporaryDirectory() as logs:
            async with SubprocRunner(
                launch,
                concurrency=in_flight,
                max_workers=WORKERS,
                episodes_per_worker=-(-in_flight // WORKERS),
                logs=Path(logs),
                open_worker_endpoint=self._gateway.open_worker_endpoint,
                warn=print,
            ) as runner:
                yield runner

    async def round(self, runner: AgentRunner, in_flight: int, episodes: int) -> Spent:
        """Roll out ``episodes`` with so many in flight."""
        options = self._options
        number = next(self._numbers)
        settings = SessionSettings(training=True, seed_key=(number,))
        waits: list[float] = []

        async def finished(episode: Episode) -> None:
            assert episode.reward is not None, episode.failure
            waits.extend(episode.call_rewards.values())

        runs = EpisodeRunner(runner, self._gateway.open_session, None, 600.0, 1)
        dispatcher = Dispatcher(runs, in_flight, FailureBudget(0.0, 16), finished)

        def request(task: int) -> GroupRequest:
            data = {"number": f"{number}.{task}", "turns": options.turns, "think": options.think}

            def with_settings(key: EpisodeKey) -> SessionSettings:
                return settings

            return GroupRequest("train", task, task, data, range(8), with_settings)

        gc.collect()
        workers = self._process.children(recursive=True)
        before = self._cpu([self._process]), self._cpu(workers), time.perf_counter(), self._collected.seconds
        with watched(self._process) as memory:
            async with contextlib.aclosing(dispatcher.dispatch(map(request, range(episodes // 8)))) as groups:
                async for _ in groups:
                    pass
        calls = len(waits)
        workers = self._process.children(recursive=True)
        after = self._cpu([self._process]), self._cpu(workers), time.perf_counter(), self._collected.seconds
        run, agents, wall, collected = (1000 * (b - a) / calls for a, b in zip(before, after, strict=True))
        return Spent(run, agents, wall, collected, waits, (max(memory) - memory[0]) / in_flight)

    @staticmethod
    def _cpu(processes: list[psutil.Process]) -> float:
        total = 0.0
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


async def rollouts(options: argparse.Namespace, ways: list[str]) -> None:
    renderer = load_renderer(Path(agentrl_agents.__file__).parent / "tiny")
    gateway = Gateway(EngineCompleter(InstantBackend(renderer), Capabilities(CONTEXT, options.many), renderer))
    gateway.start()
    collected = Collected()
    header = f"{'milliseconds a call':20}{'in flight':>10}{'run':>8}{'of it GC':>9}{'agents':>8}{'wall':>8}"
    print(f"{header}{'p50':>8}{'p99':>8}{'KiB each':>10}{'x few':>8}")
    with frozen_heap():
        for way in ways:
            rollout = Rollout(way, gateway, options, collected)
            taken: dict[int, list[Spent]] = {options.few: [], options.many: []}
            async with contextlib.AsyncExitStack() as stack:
                runners = {each: await stack.enter_async_context(rollout.runner(each)) for each in taken}
                for each, runner in runners.items():  # Starts every worker, and warms the caches.
                    await rollout.round(runner, each, options.many // 2)
                for number in range(options.rounds):
                    order = list(runners.items())
                    for each, runner in order if number % 2 else reversed(order):
                        taken[each].append(await rollout.round(runner, each, options.many))
            report(way, taken)
    gateway.stop()


def report(way: str, taken: dict[int, list[Spent]]) -> None:
    few = next(iter(taken.values()))
    for in_flight, rounds in taken.items():
        waits = sorted(1000 * wait for each in rounds for wait in each.waits)
        ratios = [(each.run + each.agents) / (base.run + base.agents) for each, base in zip(rounds, few, strict=True)]

        def middle(name: str, rounds: list[Spent] = rounds) -> float:
            return statistics.median(getattr(each, name) for each in rounds)

        print(
            f"{way:20}{in_flight:10,}{middle('run'):8.3f}{middle('collected'):9.3f}{middle('agents'):8.3f}"
            f"{middle('wall'):8.3f}{waits[len(waits) // 2]:8.1f}{waits[int(len(waits) * 0.99)]:8.1f}"
            f"{middle('memory') / 1024:10.1f}{statistics.median(ratios):8.3f}"
        )


async def sessions(options: argparse.Namespace) -> None:
    """Open sessions, call once in each, and close them, beside a gateway that has as many open as there are clients."""
    header = f"{'open sessions':16}{'open ms':>9}{'CPU a call':>12}{'wall':>8}"
    print(f"\n{header}{'p50':>8}{'p99':>8}{'close ms':>10}{'KiB each':>10}")
    with Served() as served:
        await session_calls(served, options.few, options.few, 20)  # Warms up.
        for _ in range(options.rounds):
            await session_calls(served, options.few, options.few, options.sessions // options.few, told=True)
            await session_calls(served, options.sessions, options.few, 1, told=True)


async def session_calls(served: Served, count: int, clients: int, waves: int, *, told: bool = False) -> None:
    opening = closing = 0.0
    cpu = wall = 0.0
    waits: list[float] = []
    before = served.memory()
    grown = 0
    for _ in range(waves):
        began = time.perf_counter()
        opened = served.sessions(count)
        opening += time.perf_counter() - began
        used, began = served.cpu(), time.perf_counter()
        waits += await called(opened, clients)
        cpu, wall = cpu + served.cpu() - used, wall + time.perf_counter() - began
        grown = grown or served.memory() - before
        began = time.perf_counter()
        served.close_sessions()
        closing += time.perf_counter() - began
    calls = count * waves
    waits = sorted(1000 * each for each in waits)
    if told:
        print(
            f"{count:<16,}{1000 * opening / calls:9.3f}{1000 * cpu / calls:12.3f}{1000 * wall / calls:8.3f}"
            f"{waits[len(waits) // 2]:8.1f}{waits[int(len(waits) * 0.99)]:8.1f}{1000 * closing / calls:10.3f}"
            f"{grown / count / 1024:10.1f}"
        )


async def called(opened: list[tuple[str, str]], clients: int) -> list[float]:
    """One call in each session, by so many clients that take the next one each."""
    left, waits = iter(opened), []

    async def work() -> None:
        client = BareClient(*opened[0])
        await client.open()
        for session in left:
            client.enter(*session)
            began = time.perf_counter()
            await client.ask("/chat/completions", {"model": "any", "max_tokens": 16, "messages": [SYSTEM, ASK, MORE]})
            waits.append(time.perf_counter() - began)
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(WAYS)} (in quotes) and sessions; by default all")
    parser.add_argument("--few", type=int, default=64)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--think", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=10_000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = options.names or [*WAYS, "sessions"]
    if ways := [name for name in names if name in WAYS]:
        asyncio.run(rollouts(options, ways))
    if "sessions" in names:
        asyncio.run(sessions(options))


if __name__ == "__main__":
    main()
