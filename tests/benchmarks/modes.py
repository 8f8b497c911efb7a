"""Episodes a second of an agent of one call: as coroutines, in warm workers, and in one process an episode.

    python -m tests.benchmarks.modes [--episodes 256] [--rounds 3] [--workers N] [--concurrency 64]

The agent is the bundled ``math``: an openai client, one question, a reward. The backend answers at once, so that
nothing but running agents is measured. ``one process an episode`` starts an interpreter for each, as many side by
side as there are workers, with the endpoint in its environment; it runs fewer episodes, since each takes so long.
*Wall* is the time that passes for each episode, several being under way at once; *CPU* is that of all processes, the
workers' included. Ways take turns; the ratios are medians of those of each round. To reach: warm workers within 3 times
inline, and 10 times one process an episode.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.benchmarks.call import InstantBackend
from tests.benchmarks.taken import Taken
from tests.rollout.requests import requests_of

from agentrl.agents.binding import bind_agent
from agentrl.gateway import EngineCompleter, Gateway, SessionSettings
from agentrl.inference.contract import Capabilities
from agentrl.rollout.contract import AgentRunner, EpisodeKey
from agentrl.rollout.dispatcher import Dispatcher, FailureBudget
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineRunner
from agentrl.rollout.subproc.executor import SubprocRunner
from agentrl.rollout.subproc.interpreter import AgentLaunch, worker_environment
from agentrl.tokens.selection import load_renderer

TASK = {"question": "What is 12 + 30?", "answer": "42"}
COLD_SHARE = 16
"""One process an episode runs a sixteenth of the episodes."""
DEADLINE_S = 300.0

EPISODE = """
import asyncio, os, sys
from agentrl_agents.math import MathAgent
connection = {"base_url": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"], "http_client": None}
print(asyncio.run(MathAgent().run({"question": sys.argv[1], "answer": "42"}, **connection)))
"""


class ColdRunner:
    """Starts a process for every episode."""

    def __init__(self, processes: int) -> None:
        self._slots = asyncio.Semaphore(processes)

    async def run(self, data: dict, connection: dict, **_: object) -> float:
        """The reward that the process printed."""
        endpoint = {"OPENAI_BASE_URL": connection["base_url"], "OPENAI_API_KEY": connection["api_key"]}
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", EPISODE, data["question"]),
                env={**os.environ, **endpoint},
                stdout=asyncio.subprocess.PIPE,
            )
            printed, _ = await process.communicate()
        return float(printed)


@contextlib.asynccontextmanager
async def inline() -> AsyncIterator[AgentRunner]:
    from agentrl_agents.math import MathAgent

    yield InlineRunner(bind_agent(MathAgent, {}, name="math"))


@contextlib.asynccontextmanager
async def cold(processes: int) -> AsyncIterator[AgentRunner]:
    yield ColdRunner(processes)


@contextlib.asynccontextmanager
async def warm(gateway: Gateway, workers: int, concurrency: int) -> AsyncIterator[AgentRunner]:
    process = AgentLaunch("math", {}, Path(sys.executable), worker_environment((), os.environ))
    with tempfile.TemporaryDirectory() as logs:
        async with SubprocRunner(
            process,
            concurrency=concurrency,
            max_workers=workers,
            episodes_per_worker=None,
            logs=Path(logs),
            open_worker_endpoint=gateway.open_worker_endpoint,
            warn=print,
        ) as runner:
            yield runner


async def measure(gateway: Gateway, agent: AgentRunner, episodes: int, concurrency: int) -> Taken:
    """Seconds an episode of one batch, recorded and rewarded as in a run."""
    runner = EpisodeRunner(agent, gateway.open_session, None, DEADLINE_S, max_attempts=1)

    async def finished(episode: object) -> None: ...

    def settings(key: EpisodeKey) -> SessionSettings:
        return SessionSettings(training=True, seed_key=(0, "train", key.task, key.sample))

    dispatcher = Dispatcher(runner, concurrency, FailureBudget(0.0, episodes), finished)
    requests = requests_of([TASK] * max(1, episodes // 8), settings, samples=8)
    began = Taken.now()
    groups = await dispatcher.collect(requests)
    taken, count = Taken.now().since(began), sum(len(group.episodes) for group in groups)
    return Taken(taken.wall / count, taken.cpu / count)


async def run(options: argparse.Namespace) -> None:
    renderer = load_renderer(_tiny())
    gateway = Gateway(
        EngineCompleter(InstantBackend(renderer), Capabilities(context_length=1024, max_concurrency=64), renderer)
    )
    gateway.start()
    taken: dict[str, list[Taken]] = {}
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ways: dict[str, tuple[AgentRunner, int]] = {
            "inline": (await enter(inline()), options.episodes),
            "warm workers": (await enter(warm(gateway, options.workers, options.concurrency)), options.episodes),
            "one process an episode": (await enter(cold(options.workers)), options.episodes // COLD_SHARE),
        }
        for name, (agent, episodes) in ways.items():
            await measure(gateway, agent, min(episodes, 64), options.concurrency)
            taken[name] = []
        for _ in range(options.rounds):
            for name, (agent, episodes) in ways.items():
                taken[name].append(await measure(gateway, agent, episodes, options.concurrency))
    gateway.stop()
    _print(taken)


def _print(taken: dict[str, list[Taken]]) -> None:
    warm_ones = [each.wall for each in taken["warm workers"]]
    print(f"{'way':24}{'episodes/s':>12}{'best':>9}{'warm workers are':>20}{'wall ms each':>16}{'CPU ms each':>15}")
    for name, figures in taken.items():
        wall, cpu = [each.wall for each in figures], [each.cpu for each in figures]
        ratio = statistics.median(other / ours for ours, other in zip(warm_ones, wall, strict=True))
        speeds = f"{1 / statistics.median(wall):12.1f}{1 / min(wall):9.1f}{ratio:14.2f} times"
        print(f"{name:24}{speeds}{1000 * statistics.median(wall):16.1f}{1000 * statistics.median(cpu):15.1f}")


def _tiny() -> Path:
    import agentrl_agents

    return Path(agentrl_agents.__file__).parent / "tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    whole: Callable[[str], int] = int
    parser.add_argument("--episodes", type=whole, default=256)
    parser.add_argument("--rounds", type=whole, default=3)
    parser.add_argument("--workers", type=whole, default=os.cpu_count() or 1)
    parser.add_argument("--concurrency", type=whole, default=64)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
