"""Requests, the circumstances under which an engine answers them, and their answers to the last bit."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from tests.inference.torch_backends import chunks, served

from agentrl.inference.contract import Chunk, GenerationRequest, Grammar, Sampling
from agentrl.inference.engine.backend import TorchBackend

Answer = tuple[tuple[int, ...], bytes, tuple]
"""Ids, the bytes of their log-probabilities, and the likeliest alternatives."""


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    seed: int
    tokens: int

    @property
    def sampling(self) -> dict:
        """Every field that a row is sampled by differs between requests."""
        return {
            "seed": self.seed,
            "max_tokens": self.tokens,
            "temperature": (1.0, 0.7, 0.0)[self.seed % 3],
            "top_p": (1.0, 0.9)[self.seed % 2],
            "top_k": (0, 0, 0, 5)[self.seed % 4],
            "top_logprobs": self.seed % 5,
            "logit_bias": ((self.seed, 3.0), (9, -2.0)) if self.seed % 6 == 5 else (),
            "grammar": Grammar("regex", "[0-9 ]{90}[a-z]*") if self.seed % 8 == 4 else None,
        }


@dataclass(frozen=True)
class Plan:
    """What is done beside the requests that are looked at."""

    order: tuple[int, ...] | None = None
    """In which they arrive; ``None`` for theirs."""
    gaps: tuple[float, ...] = (0.0,)
    """Milliseconds between arrivals, over and over."""
    mates: Sequence[Request] = ()
    cancelled: Sequence[int] = ()
    """After how many chunks a mate's reader goes away, over and over; 0 for never."""
    warm: Sequence[Request] = ()
    """What was asked before, and is in the prefix cache."""
    concurrency: int = 64
    prefix_cache_tokens: int | None = None
    max_batch_tokens: int = 2048
    kv_cache_tokens: int | None = None

    @property
    def options(self) -> dict:
        return {
            "prefix_cache_tokens": self.prefix_cache_tokens,
            "max_batch_tokens": self.max_batch_tokens,
            "kv_cache_tokens": self.kv_cache_tokens,
        }


def requests_for(vocabulary: int, count: int, longest: int = 420) -> list[Request]:
    """Requests of many lengths, of which most share a beginning with others. The longest pass a tile of attention."""
    generator = random.Random(0)
    shared = [generator.randrange(vocabulary) for _ in range(longest)]
    made = []
    for seed in range(count):
        begun = shared[: generator.choice([0, 3, 20, longest // 8, longest if seed % 7 == 0 else 40])]
        own = [generator.randrange(vocabulary) for _ in range(generator.choice([1, 2, 9, 30]))]
        made.append(Request((*begun, *own), seed, (1, 4, 12, 40, 120)[seed % 5]))
    return made


@st.composite
def plans(draw: st.DrawFn, vocabulary: int, count: int) -> Plan:
    """Plans for ``count`` requests."""
    shared = requests_for(vocabulary, count)
    ids = st.integers(0, vocabulary - 1)
    fresh = st.builds(
        Request, st.lists(ids, min_size=1, max_size=40).map(tuple), st.integers(0, 99), st.integers(1, 30)
    )
    alike = st.builds(
        lambda given, keep, seed, tokens: Request(given.prompt[: max(1, keep)], seed, tokens),
        st.sampled_from(shared),
        st.integers(1, 450),
        st.integers(0, 99),
        st.integers(1, 30),
    )
    others = st.lists(st.one_of(fresh, alike), max_size=50)
    return Plan(
        order=tuple(draw(st.permutations(range(count)))),
        gaps=tuple(draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 3.0]), min_size=1, max_size=6))),
        mates=draw(others),
        cancelled=draw(st.lists(st.integers(0, 6), max_size=5)),
        warm=draw(st.lists(alike, max_size=4)),
        concurrency=draw(st.sampled_from([2, 5, 17, 64])),
        prefix_cache_tokens=draw(st.sampled_from([None, 0, 60, 500])),
        max_batch_tokens=draw(st.sampled_from([1, 10, 33, 256, 2048])),
        kv_cache_tokens=draw(st.sampled_from([None, 600, 1500])),
    )


def answers(folder: Path, asked: Sequence[Request], plan: Plan, *, reproducible: bool = True) -> list[Answer]:
    """What an engine answers to ``asked`` while it is used as ``plan`` says."""

    async def use(backend: TorchBackend) -> list[Answer]:
        for request in plan.warm:
            await chunks(backend, request.prompt, **request.sampling)
        leaving = itertools.cycle(plan.cancelled or [0])
        mates = [asyncio.create_task(_mate(backend, mate, next(leaving))) for mate in plan.mates]
        tasks: dict[int, asyncio.Task[list[Chunk]]] = {}
        for turn, index in enumerate(plan.order or range(len(asked))):
            request = asked[index]
            tasks[index] = asyncio.create_task(chunks(backend, request.prompt, **request.sampling))
            await asyncio.sleep(plan.gaps[turn % len(plan.gaps)] / 1000)
        found = [_bits((await tasks[index])[-1]) for index in range(len(asked))]
        await asyncio.gather(*mates)
        return found

    options = {"reproducible": reproducible, "device": "cpu", **plan.options}
    return served(folder, use, concurrency=plan.concurrency, **options)


async def _mate(backend: TorchBackend, mate: Request, leaves_after: int) -> None:
    request = GenerationRequest(mate.prompt, Sampling(**mate.sampling), stream=True)
    reader, read = backend.generate(request), 0
    async for _ in reader:
        read += 1
        if read == leaves_after:
            await reader.aclose()
            return


def _bits(chunk: Chunk) -> Answer:
    return chunk.ids, struct.pack(f"{len(chunk.logprobs)}d", *chunk.logprobs), chunk.top_logprobs
