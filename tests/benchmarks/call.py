"""CPU and wall milliseconds of one recorded chat call, in process and over HTTP, beside the SDK's own floor.

The call has 3 messages and 16 sampled tokens, no logprobs. The backend answers at once; SDK, gateway,
renderer, tokenizer and recording are the real ones. The floor is the same client with a transport that
answers from memory; eight sessions, as those of a group, ask the same. A *next turn* extends a recorded
first one (user, assistant, user), by a client that made that one too; a *first turn* is rendered whole
(system, user, user), by a client's first call. The floor makes the same calls of the same kinds of client.
CPU is the process's time, server thread and garbage collection included, for blocks of calls that take turns; clients
and sessions are made outside of it. *Wall* is the time that passes: calls are made one after another, over HTTP on one
kept connection, and the engine answers at once, so what it has beyond CPU is waiting. *wall / CPU* is the median of
those of each block, which other work on the machine raises too.

    python tests/benchmarks/call.py [--rounds 20] [--calls 50] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import itertools
import pstats
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from agentrl.clients import client_library
from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

TOKENS = 16
GROUP = 8
SYSTEM = {"role": "system", "content": "You are a careful assistant. Answer with a number and nothing else."}
ASK = {"role": "user", "content": "Ann has 12 apples and buys 34 more. How many apples does she have now?"}
MORE = {"role": "user", "content": "Check the sum once more, please, and say the number again."}


class InstantBackend:
    """Samples nothing: the same 16 tokens, at once."""

    def __init__(self, renderer: Renderer) -> None:
        text = "The answer is 46, because 12 and 34 are 46 in all, as I said."
        ids = (renderer.vocabulary.encode(text) * TOKENS)[: TOKENS - 1]
        self.ids = (*ids, renderer.vocabulary.convert_tokens_to_ids("<|im_end|>"))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        yield Chunk(self.ids, (-0.5,) * TOKENS, (1,) * TOKENS, finish="stop")


class CannedTransport:
    """Answers every request with one response, from memory."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._response = client_library().Response

    async def handle_async_request(self, request: Any) -> Any:
        return self._response(200, headers={"content-type": "application/json"}, content=self._body)

    async def aclose(self) -> None: ...


Calls = list[Callable[[], Awaitable[Any]]]


@dataclass(frozen=True)
class Taken:
    """Milliseconds a call, of one block of them."""

    cpu: float
    wall: float
    collected: float
    """Of ``cpu``, what went into garbage collection."""


class Bench:
    """The ways of making a call; each prepares a block of calls, to be made one after another."""

    def __init__(self, gateway: Gateway, calls: int, canned: bytes) -> None:
        self._gateway = gateway
        self._calls = calls
        self._blocks = itertools.count()
        self.canned = client_library().AsyncClient(transport=CannedTransport(canned))
        self.sockets = client_library().AsyncClient(verify=False)
        self.in_process = gateway.http_client()

    def first_turn(self, http_client: Any) -> Callable[[], Awaitable[Calls]]:
        async def prepare() -> Calls:
            asks = self._asks()
            return [
                _call(client, [SYSTEM, ask, MORE])
                for client, ask in zip(self._clients(http_client), asks, strict=False)
            ]

        return prepare

    def next_turn(self, http_client: Any) -> Callable[[], Awaitable[Calls]]:
        async def prepare() -> Calls:
            return [await self._second(*each) for each in zip(self._clients(http_client), self._asks(), strict=False)]

        return prepare

    def _asks(self) -> Iterator[dict[str, str]]:
        """Questions of one block of calls: a group of episodes has one, and no other block has it."""
        block = next(self._blocks)
        return (_said(ASK, f"{block}.{number // GROUP}") for number in itertools.count())

    async def _second(self, client: AsyncOpenAI, ask: dict[str, str]) -> Callable[[], Awaitable[Any]]:
        """The call after a first one, with what agents say to every wrong answer."""
        answer = await _call(client, [ask])()
        turn = answer.choices[0].message.model_dump(exclude_none=True)
        return _call(client, [ask, turn, MORE])

    def _clients(self, http_client: Any) -> list[AsyncOpenAI]:
        sessions = [_session(self._gateway) for _ in range(self._calls)]
        return [
            AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, http_client=http_client)
            for session in sessions
        ]

    async def close(self) -> None:
        await self.sockets.aclose()
        await self.canned.aclose()


def _said(message: dict[str, str], number: object) -> dict[str, str]:
    """The message in words that no other ``number`` has, so that caches serve it no oftener than in a run."""
    return {**message, "content": f"{number}: {message['content']}"}


def _session(gateway: Gateway) -> Session:
    return gateway.open_session(SessionSettings(training=True, seed_key=(0, "train", 1, 2, 3)))


async def _canned_body(gateway: Gateway) -> bytes:
    """What the gateway itself answers, for the floor to answer too."""
    session = _session(gateway)
    client = AsyncOpenAI(base_url=session.base_url, api_key=session.api_key, http_client=session.http_client)
    raw = await client.chat.completions.with_raw_response.create(model="policy", messages=[SYSTEM, ASK, MORE])
    return bytes(raw.content)


def _call(client: AsyncOpenAI, messages: list[Any]) -> Callable[[], Awaitable[Any]]:
    return lambda: client.chat.completions.create(model="policy", messages=messages)


async def measure(prepare: Callable[[], Awaitable[Calls]]) -> Taken:
    calls = await prepare()
    collected, began = 0.0, 0.0

    def watch(phase: str, _: dict[str, int]) -> None:
        nonlocal collected, began
        if phase == "start":
            began = time.process_time()
        else:
            collected += time.process_time() - began

    gc.collect()
    gc.callbacks.append(watch)
    start, wall_start = time.process_time(), time.perf_counter()
    for call in calls:
        await call()
    spent, passed = time.process_time() - start, time.perf_counter() - wall_start
    gc.callbacks.remove(watch)
    return Taken(*(1000 * seconds / len(calls) for seconds in (spent, passed, collected)))


async def run(gateway: Gateway, rounds: int, calls: int, profile: bool) -> None:
    bench = Bench(gateway, calls, await _canned_body(gateway))
    ways = {
        "first turn, SDK floor": bench.first_turn(bench.canned),
        "first turn, in process": bench.first_turn(bench.in_process),
        "next turn, SDK floor": bench.next_turn(bench.canned),
        "next turn, in process": bench.next_turn(bench.in_process),
        "next turn, over HTTP": bench.next_turn(bench.sockets),
    }
    for prepare in ways.values():
        await measure(prepare)
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, prepare in ways.items():
            taken[name].append(await measure(prepare))
    _print(taken)
    if profile:
        await _profile(bench.next_turn(bench.in_process))
    await bench.close()


def _print(taken: dict[str, list[Taken]]) -> None:
    """Medians; the ratios are medians of those of each round, whose calls were made side by side."""
    print(
        f"{'milliseconds a call':24}{'CPU':>9}{'best':>9}{'of GC':>9}{'x floor':>9}"
        f"{'wall':>9}{'best':>9}{'wall / CPU':>12}"
    )
    floors: dict[str, list[float]] = {}
    for name, blocks in taken.items():
        cpu, wall = [block.cpu for block in blocks], [block.wall for block in blocks]
        floor = floors.setdefault(name.partition(",")[0], cpu)
        ratio = statistics.median(total / below for total, below in zip(cpu, floor, strict=True))
        waits = statistics.median(block.wall / block.cpu for block in blocks)
        collected = statistics.mean(block.collected for block in blocks)
        figures = f"{statistics.median(cpu):9.3f}{min(cpu):9.3f}{collected:9.3f}{ratio:9.2f}"
        print(f"{name:24}{figures}{statistics.median(wall):9.3f}{min(wall):9.3f}{waits:12.2f}")


async def _profile(prepare: Callable[[], Awaitable[Calls]]) -> None:
    profiler = cProfile.Profile()
    for _ in range(10):
        calls = await prepare()
        profiler.enable()
        for call in calls:
            await call()
        profiler.disable()
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(45)
    pstats.Stats(profiler).strip_dirs().sort_stats("cumtime").print_stats(
        "gateway|tokens|renderers|transport|calls|session", 40
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--model", type=Path, default=None, help="a model folder; by default the bundled tiny model")
    parser.add_argument("--profile", action="store_true", help="show where an in-process call spends its time")
    options = parser.parse_args()
    renderer = load_renderer(options.model or _tiny())
    gateway = Gateway(
        EngineCompleter(InstantBackend(renderer), Capabilities(context_length=4096, max_concurrency=64), renderer)
    )
    gateway.start()
    asyncio.run(run(gateway, options.rounds, options.calls, options.profile))
    gateway.stop()


def _tiny() -> Path:
    import agentrl_agents

    return Path(agentrl_agents.__file__).parent / "tiny"


if __name__ == "__main__":
    main()
