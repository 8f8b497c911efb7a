"""New weights: in place for every token from then on, and nothing of the old ones used again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from agentrl.inference.contract import Chunk
from agentrl.testing.backends.base import BackendSuite, needs_training
from agentrl.testing.backends.bench import Bench, ask, joined, read
from agentrl.testing.backends.reference import Reference

__all__ = ["WeightUpdates"]


_BEGUN = 16
"""How many tokens a completion has shown when it counts as under way."""

sampled_or_greedy = pytest.mark.parametrize("temperature", [1.0, 0.0], ids=["sampled", "greedy"])
"""A logprob tells which weights scored a token, and only a greedy token by which of them it was chosen."""


class WeightUpdates(BackendSuite):
    """Tests of a backend that is trained with."""

    @sampled_or_greedy
    def test_tokens_are_those_of_the_new_weights_also_for_a_prompt_seen_before(
        self, temperature: float, bench: Bench
    ) -> None:
        needs_training(bench)
        bench.sample(temperature=temperature, max_tokens=12)
        old = bench.update()
        for compared in bench.sample(temperature=temperature, max_tokens=12):
            versions = set(compared.chunk.versions)
            assert versions == {bench.reference.version}, f"after the update to {bench.reference.version}: {versions}"
            self._is_new(bench.reference, old, compared.prompt, compared.chunk, temperature)

    @sampled_or_greedy
    def test_update_after_update_is_exact(self, temperature: float, bench: Bench) -> None:
        needs_training(bench)
        for _ in range(3):
            old = bench.update()
            for compared in bench.sample(temperature=temperature, max_tokens=6):
                self._is_new(bench.reference, old, compared.prompt, compared.chunk, temperature)

    @sampled_or_greedy
    def test_a_completion_under_way_keeps_its_tokens_and_goes_on_under_the_new_weights(
        self, temperature: float, bench: Bench
    ) -> None:
        needs_training(bench)
        prompt = bench.prompts(1)[0]
        old, new = bench.reference, bench.reference.changed(head_only=True)
        flown, _ = bench.run(_across(bench, new, prompt, self.flight, temperature), "completions across an update")
        for how, chunk in flown.items():
            switch = _switch(how, chunk, old.version, new.version)
            before = _fault(old, prompt, chunk, temperature, self.tolerance, slice(switch))
            after = _fault(new, prompt, chunk, temperature, self.tolerance, slice(switch, None))
            assert not before, f"{how}, tokens sampled before the update are not those of the old weights: {before}"
            assert not after, f"{how}, tokens sampled after the update are not those of the new weights: {after}"

    @sampled_or_greedy
    def test_what_is_under_way_leaves_no_stale_prefix_to_others(self, temperature: float, bench: Bench) -> None:
        needs_training(bench)
        prompt = bench.prompts(1)[0]
        old, new = bench.reference, bench.reference.changed()
        flown, beside = bench.run(_across(bench, new, prompt, self.flight, temperature), "completions across an update")
        self._is_new(new, old, prompt, beside, temperature)
        for how, chunk in flown.items():
            _switch(how, chunk, old.version, new.version)
            longer = [*prompt, *chunk.ids[:40]]
            (after,) = bench.complete(ask(longer, temperature=temperature, max_tokens=6))
            self._is_new(new, old, longer, after, temperature)

    def test_tied_embeddings_are_replaced_at_both_ends(self, bench: Bench, tmp_path: Path) -> None:
        needs_training(bench)
        if not self.other_models:
            pytest.skip("it cannot be started on another model: `other_models` is false")
        with self.started(_tied_model(bench.reference, tmp_path / "tied")) as tied:
            before = max(compared.off_by for compared in tied.sample(max_tokens=6))
            assert before <= self.tolerance, f"with tied embeddings, logprobs are off by up to {before:.2g}"
            old = tied.update()
            for temperature in (1.0, 0.0):
                for compared in tied.sample(temperature=temperature, max_tokens=6):
                    self._is_new(tied.reference, old, compared.prompt, compared.chunk, temperature)

    def _is_new(self, new: Reference, old: Reference, prompt: list[int], chunk: Chunk, temperature: float) -> None:
        fault = _fault(new, prompt, chunk, temperature, self.tolerance)
        stale = "" if _fault(old, prompt, chunk, temperature, self.tolerance) else ", and are those of the old ones"
        assert not fault, f"after an update, tokens are not those of the new weights{stale}: {fault}"


async def _across(
    bench: Bench, new: Reference, prompt: list[int], tokens: int, temperature: float
) -> tuple[dict[str, Chunk], Chunk]:
    """Completions of ``tokens`` by how they are read, with ``new`` put in place once they have begun; and one of the
    same prompt that is asked for while they go on.

    One that is read whole shows nothing, so that it goes beside a stream, where there is room for both.
    """
    backend, long = bench.backend, {"max_tokens": tokens, "temperature": temperature, **bench.seed(1)}
    has_room = bench.capabilities.max_concurrency > 1
    unseen = [asyncio.ensure_future(read(backend, ask(prompt, **long)))] if has_room else []
    async with aclosing(backend.generate(ask(prompt, stream=True, **long))) as stream:
        chunks = await _begun(stream)
        await backend.update_weights(new.weights)
        bench.reference = new
        short = ask(prompt, temperature=temperature, max_tokens=6, **bench.seed(2))
        beside = asyncio.ensure_future(read(backend, short))
        chunks += [chunk async for chunk in stream]
    flown = {"streamed": joined(chunks)}
    for whole in unseen:
        flown["read whole"] = await whole
    return flown, await beside


async def _begun(stream: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    """The first chunks of a completion."""
    chunks: list[Chunk] = []
    async for chunk in stream:
        chunks.append(chunk)
        if len(joined(chunks).ids) >= _BEGUN:
            break
    return chunks


def _switch(how: str, flown: Chunk, old: int, new: int) -> int:
    """At which token the version changes from ``old`` to ``new``; fails where it does anything else."""
    switch = flown.versions.index(new) if new in flown.versions else len(flown.versions)
    expected = (old,) * switch + (new,) * (len(flown.versions) - switch)
    assert flown.versions == expected, f"{how}, versions of a completion are not the old one and then the new one"
    assert switch > 0, f"{how}, tokens that were sampled before the update carry the new version"
    assert switch < len(flown.ids), f"{how}, none of {switch} tokens was sampled under the new weights"
    return switch


def _fault(
    of: Reference, prompt: list[int], chunk: Chunk, temperature: float, tolerance: float, part: slice = slice(None)
) -> str:
    """In what a part of ``chunk`` is not what ``of`` would sample and say of it; empty where it is."""
    off_by, behind = max(of.distances(prompt, chunk)[part]), max(of.behind(prompt, chunk)[part])
    if off_by > tolerance:
        return f"logprobs are off by up to {off_by:.2g}"
    if temperature == 0 and behind > tolerance:
        return f"greedy, it took a token whose logprob is {behind:.2g} below the best"
    return ""


def _tied_model(like: Reference, folder: Path) -> Path:
    """A small random Qwen3 whose head is its embedding, with the tokenizer of ``like``."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=like.model.config.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for file in like.folder.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    for file in like.folder.glob("*.jinja"):
        shutil.copyfile(file, folder / file.name)
    return folder
