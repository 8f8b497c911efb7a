"""What two servers take from their prefix caches in episodes of several turns, as a share of all prompts' tokens.

    python -m benchmarks.prefix_cache [--turns 4] [--tokens 48] [--episodes 64] [--blocks 32 128]

Episodes pass through agents, gateway and plugin, which keeps a session on its server. Every question begins in its own
way, so that a session finds nothing but what it has left itself. *Possible* is the most that whole blocks allow: of
each prompt, the blocks that an earlier prompt of the session and its completion have filled; the last token of a
completion is in no cache, and the last one of a prompt is always computed. vLLM's blocks are of 128 tokens on a CPU
unless it is told otherwise, and of 16 on a GPU.

Beside it is what is found where the plugin is not told which requests belong together: *least loaded*, where each goes
where least is under way, which often is where its episode has just left a place, and *at random*.

The ratio, of the sessions' rate and the possible one, is 1 where no session has left its server and nothing was
dropped for want of memory.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentrl.gateway import EngineCompleter, Gateway
from agentrl.tokens.selection import load_renderer
from benchmarks.episodes import AgentTurn, Recorder, conversations, run_episodes
from benchmarks.models import endless_model
from benchmarks.served import Served, serving

REPLICAS = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of the prompts' tokens with blocks of one size."""

    block: int
    prompt: float
    """Tokens of a prompt in the mean."""
    together: float
    """Taken from the caches where a session stays with its server."""
    possible: float
    least_loaded: float
    """Taken from the caches where each request goes to the server that has least to do."""
    at_random: float
    """Taken from the caches where it goes to any."""


async def hit_rate(served: Served, gateway: Gateway, options: argparse.Namespace) -> float:
    """Of episodes that begin with empty caches."""
    await served.forget()
    before = [await served.counted(f"prefix_cache_{name}_total") for name in ("hits", "queries")]
    tasks = conversations(options.episodes, turns=options.turns, tokens=options.tokens, group=1)
    await run_episodes(gateway, tasks, options.concurrency)
    after = [await served.counted(f"prefix_cache_{name}_total") for name in ("hits", "queries")]
    hits, queries = (now - then for now, then in zip(after, before, strict=True))
    return hits / queries


def possible_rate(sessions: Sequence[Sequence[AgentTurn]], block: int) -> float:
    """The most that blocks of whole ``block`` tokens allow."""
    prompts = [turn.request.prompt_ids for turns in sessions for turn in turns]
    hits = sum(_kept(turns[:number], turn, block) for turns in sessions for number, turn in enumerate(turns))
    return hits / sum(map(len, prompts))


def _kept(earlier: Iterable[AgentTurn], turn: AgentTurn, block: int) -> int:
    """Tokens of the prompt of ``turn``, in whole blocks, that ``earlier`` turns have left in a cache."""
    prompt = turn.request.prompt_ids[:-1]
    left = ([*other.request.prompt_ids, *other.ids[:-1]] for other in earlier)
    return max((_shared(prompt, ids) // block * block for ids in left), default=0)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in pairs)


async def measured(folder: Path, block: int, options: argparse.Namespace) -> Rates:
    keys = {"replicas": REPLICAS, "args": ["--block-size", str(block)]}
    async with serving(folder, concurrency=options.concurrency, threads=1, **keys) as served:
        renderer = load_renderer(folder)
        rates, sessions = [], []
        for told in (lambda session: session, lambda session: None, any_home):
            recorder = Recorder(served.backend, told)
            gateway = Gateway(EngineCompleter(recorder, served.capabilities, renderer))
            rates.append(await hit_rate(served, gateway, options))
            gateway.stop()
            sessions.append(recorder.taken())
    kept, least_loaded, at_random = rates
    prompts = list(itertools.chain.from_iterable(sessions[0]))
    mean = sum(len(turn.request.prompt_ids) for turn in prompts) / len(prompts)
    return Rates(block, mean, kept, possible_rate(sessions[0], block), least_loaded, at_random)


def any_home(session: str | None) -> str:
    """A session of which there are as many as servers: each server has become the home of one."""
    return f"at home on {random.randrange(REPLICAS)}"


def table(rows: Sequence[Rates], options: argparse.Namespace) -> Table:
    made = Table(
        title=f"of the prompts' tokens, from the caches of {REPLICAS} servers: {options.episodes} episodes, "
        f"{options.concurrency} at once, of {options.turns} turns"
    )
    for heading in ("block", "mean prompt", "sessions kept", "possible", "of possible", "least loaded", "at random"):
        made.add_column(heading, justify="right")
    for row in rows:
        rates = [f"{row.together:.1%}", f"{row.possible:.1%}", f"{row.together / row.possible:.2f}"]
        others = [f"{row.least_loaded:.1%}", f"{row.at_random:.1%}"]
        made.add_row(str(row.block), f"{row.prompt:.0f}", *rates, *others)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=4, help="of an episode")
    parser.add_argument("--tokens", type=int, default=48, help="sampled in a turn")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16, help="episodes at once")
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 128], help="tokens of a block")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = endless_model(Path(scratch) / "endless")
        rows = [asyncio.run(measured(folder, block, options)) for block in options.blocks]
    Console(width=120).print(table(rows, options))


if __name__ == "__main__":
    main()
