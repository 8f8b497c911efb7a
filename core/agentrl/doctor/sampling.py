"""Completions drawn from a backend itself, without a gateway: what came of each, and what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from agentrl.inference.contract import Backend, GenerationRequest, Sampling

__all__ = ["TEMPERATURES", "Sample", "draw"]

TEMPERATURES = (1.0, 0.7)
"""Logprobs that are always of temperature 1 show themselves at the second."""
_EACH = 4
"""Completions at each temperature."""
_TOKENS = 16
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion; the sequences should have one entry a token."""

    prompt_ids: tuple[int, ...]
    temperature: float
    seed: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish: str | None


async def draw(backend: Backend, prompt_ids: Sequence[int]) -> list[Sample]:
    """Several short completions of one prompt at once, the first of them twice."""
    wanted = [(temperature, seed) for temperature in TEMPERATURES for seed in range(_EACH)]
    return await asyncio.gather(*(_sample(backend, tuple(prompt_ids), *each) for each in [*wanted, wanted[0]]))


async def _sample(backend: Backend, prompt_ids: tuple[int, ...], temperature: float, seed: int) -> Sample:
    sampling = Sampling(temperature=temperature, max_tokens=_TOKENS, seed=seed)
    async with aclosing(backend.generate(GenerationRequest(prompt_ids, sampling))) as stream:
        chunks = [chunk async for chunk in stream]
    return Sample(
        prompt_ids=prompt_ids,
        temperature=temperature,
        seed=seed,
        ids=tuple(token for chunk in chunks for token in chunk.ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        versions=tuple(version for chunk in chunks for version in chunk.versions),
        finish=chunks[-1].finish if chunks else None,
    )
