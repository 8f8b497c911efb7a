"""With ``reproducible`` the real model's log-probabilities have the same bits, whatever the engine does beside them."""

from __future__ import annotations

import asyncio
import random
import struct
from importlib.metadata import entry_points
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.inference.contract import BackendContext, GenerationRequest, Sampling
from agentrl_smollm2.model import smollm2_135m

pytestmark = pytest.mark.slow

VOCABULARY = 49_152
LENGTHS = (1, 9, 60, 380, 400)
"""Of prompts; the last two begin alike, and pass the length at which attention takes other shapes."""
TIGHT = {"max_batch_tokens": 50, "kv_cache_tokens": 1500, "prefix_cache_tokens": 500}


def _prompts() -> list[list[int]]:
    generator = random.Random(0)
    longest = [generator.randrange(VOCABULARY) for _ in range(max(LENGTHS))]
    return [longest[:length] for length in LENGTHS]


PROMPTS = _prompts()


async def _start(concurrency: int, **options: Any) -> Any:
    (found,) = entry_points(group="agentrl.backends", name="torch")
    options |= {"reproducible": True, "device": "cpu", "context_length": 512}
    backend = found.load()(BackendContext(smollm2_135m(), max_concurrency=concurrency, options=options))
    assert (await backend.start()).reproducible
    return backend


async def _answer(backend: Any, prompt: list[int], seed: int, tokens: int) -> tuple[tuple[int, ...], bytes]:
    request = GenerationRequest(prompt, Sampling(max_tokens=tokens, seed=seed, temperature=(1.0, 0.7)[seed % 2]))
    (chunk,) = [chunk async for chunk in backend.generate(request)]
    return chunk.ids, struct.pack(f"{len(chunk.logprobs)}d", *chunk.logprobs)


@pytest.fixture(scope="module")
def alone():
    """What each prompt is answered where it is the only one."""

    async def ask() -> list[tuple[tuple[int, ...], bytes]]:
        backend = await _start(1, prefix_cache_tokens=0)
        found = [await _answer(backend, prompt, seed, 8) for seed, prompt in enumerate(PROMPTS)]
        await backend.stop()
        return found

    return asyncio.run(ask())


@pytest.fixture(scope="module", params=[{}, TIGHT], ids=["room for all", "pieces, little room"])
def backend(request):
    backend = asyncio.run(_start(64, **request.param))
    yield backend
    asyncio.run(backend.stop())


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.permutations(range(len(PROMPTS))),
    mates=st.lists(
        st.tuples(st.sampled_from([0, 5, 50, 390]), st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)),
        max_size=40,
    ),
    pause=st.sampled_from([0.0, 0.01, 0.2]),
)
def test_bits_do_not_depend_on_what_is_beside_or_before(backend, alone, order, mates, pause):
    """What an example leaves in the prefix cache, the next one finds there."""

    async def ask() -> list[tuple[tuple[int, ...], bytes]]:
        others = [asyncio.create_task(_answer(backend, PROMPTS[-1][:begun] + own, len(own), 6)) for begun, own in mates]
        asked = {}
        for index in order:
            asked[index] = asyncio.create_task(_answer(backend, PROMPTS[index], index, 8))
            await asyncio.sleep(pause)
        found = [await asked[index] for index in range(len(PROMPTS))]
        await asyncio.gather(*others)
        return found

    assert asyncio.run(ask()) == alone
