"""CPU and wall milliseconds of the turns of one long session, and what of them is not the reading of its body.

Each turn sends the whole history and the backend answers at once, so that what is measured is the gateway: reading,
finding the parent, rendering, recording. Requests are handed to the gateway as bytes, as a server hands them on; no
client and no socket is in the figures. *Reading* is what passes until the dialect has read the body, with the digest of
its bytes and the forgetting of what was read before. *New* is what the turn costs beyond that. A turn's figure is the
median of those around it, of several sessions.

The bundled model has a renderer that extends a conversation's ids. ``--model`` measures another one, and ``--template``
its chat template without the renderer that reproduces it.

    python tests/benchmarks/turns.py [--turns 200] [--sessions 3] [--template] [--model FOLDER] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import hashlib
import json
import pstats
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.gateway import EngineCompleter, Gateway, Session, SessionSettings
from agentrl.gateway.contract import Exchange, WireRequest
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.inference.contract import Capabilities, Chunk, GenerationRequest
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer

SAID = "I add the numbers that you gave me, one after the other: the sum of 57 and 28 is 85."
ASKED = "That is right. What is the sum of it and of {turn}, and how did you come to it?"
AROUND = 8
"""Turns before and after one whose median is its figure."""


class InstantBackend:
    """Samples nothing: says the same at once."""

    def __init__(self, renderer: Renderer) -> None:
        self.ids = (*renderer.vocabulary.encode(SAID), min(renderer.stop_ids))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        yield Chunk(self.ids, (-0.5,) * len(self.ids), (1,) * len(self.ids), finish="stop")


@dataclass(frozen=True)
class Taken:
    """Milliseconds of one turn."""

    cpu: float
    wall: float
    reading: float

    @property
    def new(self) -> float:
        """CPU beyond the reading of the body."""
        return self.cpu - self.reading


def clocked(do: Callable[[], object]) -> float:
    """CPU milliseconds that it takes."""
    began = time.process_time()
    do()
    return 1000 * (time.process_time() - began)


class Timed(ChatCompletions):
    """Chat completions, with the time at which the last request was read, and that before it forgotten."""

    def __init__(self) -> None:
        self.read_at = 0.0
        self.read: Any = None

    def parse(self, request: WireRequest) -> Any:
        asked = super().parse(request)
        self.read = request, asked
        self.read_at = time.process_time()
        return asked


async def session_of(
    gateway: Gateway, chat: Timed, turns: int, profiler: cProfile.Profile | None = None
) -> list[Taken]:
    """The figures of every turn of one session."""
    session = gateway.open_session(SessionSettings(training=True, seed_key=(0, "train", 1, 2, 3)))
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are careful, and add numbers."}]
    taken = []
    for turn in range(turns):
        messages.append({"role": "user", "content": ASKED.format(turn=turn)})
        exchange = _exchange(session, messages)
        digesting = clocked(lambda body=exchange.body: hashlib.blake2b(body, digest_size=16).digest())
        if profiler is not None and turn > turns - 2 * AROUND:
            profiler.enable()
        began, began_cpu = time.perf_counter(), time.process_time()
        reply = await gateway.answer(exchange)
        cpu, wall = time.process_time() - began_cpu, time.perf_counter() - began
        reading = digesting + 1000 * (chat.read_at - began_cpu)
        if profiler is not None:
            profiler.disable()
        assert reply.status == 200, reply.body
        assert isinstance(reply.body, bytes)
        messages.append(json.loads(reply.body)["choices"][0]["message"])
        taken.append(Taken(1000 * cpu, 1000 * wall, reading))
    session.close()
    return taken


def _exchange(session: Session, messages: list[dict[str, Any]]) -> Exchange:
    body = json.dumps({"messages": messages, "model": "m"}).encode()
    headers = {"authorization": f"Bearer {session.api_key}", "content-type": "application/json"}
    return Exchange("POST", "/v1/chat/completions", body, headers)


async def run(gateway: Gateway, chat: Timed, turns: int, sessions: int, profile: bool) -> None:
    await session_of(gateway, chat, 2 * AROUND)
    gc.collect()
    taken = [await session_of(gateway, chat, turns) for _ in range(sessions)]
    print(f"{'turn':>6}{'CPU':>9}{'wall':>9}{'reading':>9}{'new':>9}  milliseconds")
    figures = {}
    for turn in sorted({20, turns // 2, turns}):
        near = [each for one in taken for each in one[max(0, turn - AROUND - 1) : turn + AROUND]]
        of = {
            name: statistics.median(getattr(each, name) for each in near) for name in ("cpu", "wall", "reading", "new")
        }
        figures[turn] = of
        print(f"{turn:6}{of['cpu']:9.3f}{of['wall']:9.3f}{of['reading']:9.3f}{of['new']:9.3f}")
    print(f"turn {turns} / turn 20, beyond the reading: {figures[turns]['new'] / figures[20]['new']:.2f}")
    if profile:
        profiler = cProfile.Profile()
        await session_of(gateway, chat, turns, profiler)
        pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(35)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--model", type=Path, default=None, help="a model folder; by default the bundled tiny model")
    parser.add_argument("--template", action="store_true", help="use the chat template without a renderer")
    parser.add_argument("--profile", action="store_true", help="show where the last turns spend their time")
    options = parser.parse_args()
    renderer = load_renderer(options.model or _tiny(), "default" if options.template else "auto")
    completer = EngineCompleter(InstantBackend(renderer), Capabilities(10**6, max_concurrency=64), renderer)
    chat = Timed()
    gateway = Gateway(completer, [chat])
    asyncio.run(run(gateway, chat, options.turns, options.sessions, options.profile))
    gateway.stop()


def _tiny() -> Path:
    import agentrl_agents

    return Path(agentrl_agents.__file__).parent / "tiny"


if __name__ == "__main__":
    main()
