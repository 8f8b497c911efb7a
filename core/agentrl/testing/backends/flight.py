"""Completions that are under way while weights are updated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from agentrl.inference.contract import Chunk
from agentrl.testing.backends.bench import Bench, ask, joined, read
from agentrl.testing.backends.reference import Reference

__all__ = ["Flight", "flights"]

_BEGUN = 16
"""How many tokens a completion has shown when it counts as under way."""
_UPDATES = 5
"""On a busy machine an update may miss a completion, which has ended by then or was not begun."""


@dataclass(frozen=True, slots=True)
class Flight:
    """Completions of one prompt, with ``new`` put in the place of ``old`` while they went on."""

    old: Reference
    new: Reference
    prompt: list[int]
    flown: dict[str, Chunk]
    """By how they were read."""
    beside: Chunk
    """A short one that was asked for after the update, while they went on."""

    def switch(self, how: str) -> int:
        """At which token the version changes from the old one to the new one; fails where it does anything else."""
        versions, old, new = self.flown[how].versions, self.old.version, self.new.version
        switch = versions.index(new) if new in versions else len(versions)
        expected = (old,) * switch + (new,) * (len(versions) - switch)
        assert versions == expected, f"{how}, versions of a completion are not the old one and then the new one"
        return switch

    @property
    def missed(self) -> str:
        """Which completion the update has missed; empty where none."""
        for how, chunk in self.flown.items():
            if len(versions := set(chunk.versions)) == 1:
                return f"{how}, {len(chunk.ids)} tokens all carry version {versions.pop()}"
        return ""


def flights(bench: Bench, tokens: int, temperature: float, *, head_only: bool = False) -> Iterator[Flight]:
    """Completions of ``tokens`` across one update after another, until one update has missed none of them.

    ``head_only`` as in ``Reference.changed``. Fails where every update misses one.
    """
    missed = ""
    for _ in range(_UPDATES):
        new = bench.reference.changed(head_only=head_only)
        flight = bench.run(_across(bench, new, tokens, temperature), "completions across an update")
        yield flight
        if not (missed := flight.missed):
            return
    pytest.fail(f"{missed}, also in the last of {_UPDATES} updates that came while it was under way", pytrace=False)


async def _across(bench: Bench, new: Reference, tokens: int, temperature: float) -> Flight:
    """One that is read whole shows nothing, so that it goes beside a stream, where there is room for both."""
    old, backend, prompt = bench.reference, bench.backend, bench.prompts(1)[0]
    long = {"max_tokens": tokens, "temperature": temperature, **bench.seed(1)}
    has_room = bench.capabilities.max_concurrency > 1
    others = [asyncio.ensure_future(read(backend, ask(prompt, **long)))] if has_room else []
    try:
        async with aclosing(backend.generate(ask(prompt, stream=True, **long))) as stream:
            chunks = await _begun(stream)
            await backend.update_weights(new.weights)
            bench.reference = new
            short = ask(prompt, temperature=temperature, max_tokens=6, **bench.seed(2))
            others.append(asyncio.ensure_future(read(backend, short)))
            chunks += [chunk async for chunk in stream]
        *whole, beside = await asyncio.gather(*others)
    finally:
        for reading in others:
            reading.cancel()
    flown = {"streamed": joined(chunks)} | ({"read whole": whole[0]} if whole else {})
    return Flight(old, new, prompt, flown, beside)


async def _begun(stream: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    """The first chunks of a completion."""
    chunks: list[Chunk] = []
    async for chunk in stream:
        chunks.append(chunk)
        if len(joined(chunks).ids) >= _BEGUN:
            break
    return chunks
