"""Tests of new weights: every token from then on is theirs, and nothing of the old ones is used again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentrl.inference.contract import Chunk
from agentrl.testing.backends.bench import BackendSuite, Bench, ask, joined, needs_training, read
from agentrl.testing.backends.reference import Reference

__all__ = ["WeightUpdates", "tied_model"]

_BEGUN = 16
"""How many tokens of a completion must have come for it to be under way."""
_UPDATES = 5
"""How many updates are tried: on a busy machine a completion may have ended before one, or not begun."""

sampled_or_greedy = pytest.mark.parametrize("temperature", [1.0, 0.0], ids=["sampled", "greedy"])
"""A logprob shows which weights scored a token; only a greedy token shows which weights chose it."""


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
        for across in _across_updates(bench, self.update_tokens, temperature, head_only=True):
            for how, chunk in across.completions.items():
                switch = across.switch(how)
                before = _fault(across.old, across.prompt, chunk, temperature, self.tolerance, slice(switch))
                after = _fault(across.new, across.prompt, chunk, temperature, self.tolerance, slice(switch, None))
                assert not before, f"{how}, tokens of the old version are not those of the old weights: {before}"
                assert not after, f"{how}, tokens of the new version are not those of the new weights: {after}"

    def test_where_kv_is_to_be_computed_anew_tokens_are_wholly_the_new_weights_own(self, bench: Bench) -> None:
        needs_training(bench)
        if not self.other_models:
            pytest.skip("it cannot be started a second time: `other_models` is false")
        with self.recomputing(bench.reference.folder) as anew:
            for across in _across_updates(anew, self.update_tokens, 1.0):
                for how, chunk in across.completions.items():
                    switch = across.switch(how)
                    before = _fault(across.old, across.prompt, chunk, 1.0, self.tolerance, slice(switch))
                    after = _fault(across.new, across.prompt, chunk, 1.0, self.tolerance, slice(switch, None))
                    assert not before, f"{how}, tokens of the old version are not those of the old weights: {before}"
                    assert not after, f"{how}, tokens of the new version rest on KV of the old weights: {after}"

    @sampled_or_greedy
    def test_what_is_under_way_leaves_no_stale_prefix_to_others(self, temperature: float, bench: Bench) -> None:
        needs_training(bench)
        for across in _across_updates(bench, self.update_tokens, temperature):
            self._is_new(across.new, across.old, across.prompt, across.beside, temperature)
            for chunk in across.completions.values():
                longer = [*across.prompt, *chunk.ids[:40]]
                (after,) = bench.complete(ask(longer, temperature=temperature, max_tokens=6))
                self._is_new(across.new, across.old, longer, after, temperature)

    def test_tied_embeddings_are_replaced_at_both_ends(self, bench: Bench, tmp_path: Path) -> None:
        needs_training(bench)
        if not self.other_models:
            pytest.skip("it cannot be started on another model: `other_models` is false")
        with self.started(tied_model(bench.reference, tmp_path / "tied")) as tied:
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


@dataclass(frozen=True, slots=True)
class AcrossUpdate:
    """Completions of one prompt during which the weights ``old`` were replaced by ``new``."""

    old: Reference
    new: Reference
    prompt: list[int]
    completions: dict[str, Chunk]
    """By how they were read: streamed or whole."""
    beside: Chunk
    """A short completion that was asked for after the update, while the others went on."""

    def switch(self, how: str) -> int:
        """Returns the index of the first token of the new version. Fails where versions change in any other way."""
        versions, old, new = self.completions[how].versions, self.old.version, self.new.version
        switch = versions.index(new) if new in versions else len(versions)
        expected = (old,) * switch + (new,) * (len(versions) - switch)
        assert versions == expected, f"{how}, versions of a completion are not the old one and then the new one"
        return switch

    @property
    def missed(self) -> str:
        """Which completion was not under way during the update, as a sentence; empty where none."""
        for how, chunk in self.completions.items():
            if len(versions := set(chunk.versions)) == 1:
                return f"{how}, {len(chunk.ids)} tokens all carry version {versions.pop()}"
        return ""


def _across_updates(
    bench: Bench, tokens: int, temperature: float, *, head_only: bool = False
) -> Iterator[AcrossUpdate]:
    """Yields completions of ``tokens`` tokens across one update after another, until all were under way during one.

    ``head_only`` is that of ``Reference.changed``. Fails the test where every update misses a completion.
    """
    missed = ""
    for _ in range(_UPDATES):
        new = bench.reference.changed(head_only=head_only)
        across = bench.run(_across(bench, new, tokens, temperature), "completions across an update")
        yield across
        if not (missed := across.missed):
            return
    pytest.fail(f"{missed}, also in the last of {_UPDATES} updates that came while it was under way", pytrace=False)


async def _across(bench: Bench, new: Reference, tokens: int, temperature: float) -> AcrossUpdate:
    """A completion that is read whole does not show when it is under way, so it runs beside a streamed one."""
    old, backend, prompt = bench.reference, bench.backend, bench.prompts(1)[0]
    long = {"max_tokens": tokens, "temperature": temperature, **bench.seed(1)}
    has_room = bench.capabilities.max_concurrency > 1
    others = [asyncio.ensure_future(read(backend, ask(prompt, **long)))] if has_room else []
    try:
        async with aclosing(backend.generate(ask(prompt, stream=True, **long))) as stream:
            chunks = await _begun(stream)
            with new.weights as weights:
                await backend.update_weights(weights)
            bench.reference = new
            short = ask(prompt, temperature=temperature, max_tokens=6, **bench.seed(2))
            others.append(asyncio.ensure_future(read(backend, short)))
            chunks += [chunk async for chunk in stream]
        *whole, beside = await asyncio.gather(*others)
    finally:
        for reading in others:
            reading.cancel()
    completions = {"streamed": joined(chunks)} | ({"read whole": whole[0]} if whole else {})
    return AcrossUpdate(old, new, prompt, completions, beside)


async def _begun(stream: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    """The first chunks of a completion, read until it is under way."""
    chunks: list[Chunk] = []
    async for chunk in stream:
        chunks.append(chunk)
        if len(joined(chunks).ids) >= _BEGUN:
            break
    return chunks


def _fault(
    of: Reference, prompt: list[int], chunk: Chunk, temperature: float, tolerance: float, part: slice = slice(None)
) -> str:
    """How a part of ``chunk`` differs from what the model ``of`` would sample and score; empty where it does not."""
    off_by = max(of.distances(prompt, chunk)[part], default=0.0)
    behind = max(of.behind(prompt, chunk)[part], default=0.0)
    if off_by > tolerance:
        return f"logprobs are off by up to {off_by:.2g}"
    if temperature == 0 and behind > tolerance:
        return f"greedy, it took a token whose logprob is {behind:.2g} below the best"
    return ""


def tied_model(like: Reference, folder: Path) -> Path:
    """Returns a small random Qwen3 whose head is its embedding, with the tokenizer of ``like``."""
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
