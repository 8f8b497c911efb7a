"""New weights: in place for every token from then on, and nothing of the old ones used again."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest

from agentrl.inference.contract import Chunk
from agentrl.testing.backends.base import BackendSuite, needs_training
from agentrl.testing.backends.bench import Bench, ask, joined, read
from agentrl.testing.backends.reference import Reference

__all__ = ["WeightUpdates"]


class WeightUpdates(BackendSuite):
    """Tests of a backend that is trained with."""

    def test_tokens_are_those_of_the_new_weights_also_for_a_prompt_seen_before(self, bench: Bench) -> None:
        needs_training(bench)
        bench.sample(max_tokens=12)
        old = bench.update()
        for compared in bench.sample(max_tokens=12):
            versions = set(compared.chunk.versions)
            assert versions == {bench.reference.version}, f"after the update to {bench.reference.version}: {versions}"
            _of(bench.reference, old, compared.prompt, compared.chunk, self.tolerance)

    def test_update_after_update_is_exact(self, bench: Bench) -> None:
        needs_training(bench)
        for _ in range(3):
            old = bench.update()
            (compared, *_) = bench.sample(temperature=0, max_tokens=6)
            _of(bench.reference, old, compared.prompt, compared.chunk, self.tolerance)

    def test_a_completion_under_way_keeps_its_tokens_and_goes_on_under_the_new_weights(self, bench: Bench) -> None:
        needs_training(bench)
        prompt = bench.prompts(1)[0]
        old, new = bench.reference, bench.reference.changed(head_only=True)
        flown, _ = bench.run(_across(bench, new, prompt, self.flight), "a completion across an update")
        switch = _switch(flown, old.version, new.version)
        before, after = old.distances(prompt, flown)[:switch], new.distances(prompt, flown)[switch:]
        assert max(before) <= self.tolerance, "tokens sampled before the update are not those of the old weights"
        assert max(after) <= self.tolerance, "tokens sampled after the update are not those of the new weights"

    def test_what_is_under_way_leaves_no_stale_prefix_to_others(self, bench: Bench) -> None:
        needs_training(bench)
        prompt = bench.prompts(1)[0]
        old, new = bench.reference, bench.reference.changed()
        flown, beside = bench.run(_across(bench, new, prompt, self.flight), "a completion across an update")
        _switch(flown, old.version, new.version)
        longer = [*prompt, *flown.ids[:40]]
        (after,) = bench.complete(ask(longer, max_tokens=6))
        _of(new, old, prompt, beside, self.tolerance)
        _of(new, old, longer, after, self.tolerance)

    def test_tied_embeddings_are_replaced_at_both_ends(self, bench: Bench, tmp_path: Path) -> None:
        needs_training(bench)
        if not self.other_models:
            pytest.skip("it cannot be started on another model: `other_models` is false")
        with self.started(_tied_model(bench.reference, tmp_path / "tied")) as tied:
            before = max(compared.off_by for compared in tied.sample(max_tokens=6))
            assert before <= self.tolerance, f"with tied embeddings, logprobs are off by up to {before:.2g}"
            old = tied.update()
            for compared in tied.sample(max_tokens=6):
                _of(tied.reference, old, compared.prompt, compared.chunk, self.tolerance)


async def _across(bench: Bench, new: Reference, prompt: list[int], tokens: int) -> tuple[Chunk, Chunk]:
    """A completion of ``tokens``, with ``new`` put in place after its first ones; and one of the
    same prompt that is asked for while the first goes on."""
    request = ask(prompt, stream=True, max_tokens=tokens, **bench.seed(1))
    async with aclosing(bench.backend.generate(request)) as stream:
        chunks = [await anext(stream)]
        await bench.backend.update_weights(new.weights)
        bench.reference = new
        beside = asyncio.ensure_future(read(bench.backend, ask(prompt, max_tokens=6, **bench.seed(2))))
        chunks += [chunk async for chunk in stream]
    return joined(chunks), await beside


def _switch(flown: Chunk, old: int, new: int) -> int:
    """At which token the version changes from ``old`` to ``new``; fails where it does anything else."""
    switch = flown.versions.index(new) if new in flown.versions else len(flown.versions)
    expected = (old,) * switch + (new,) * (len(flown.versions) - switch)
    assert flown.versions == expected, "versions along a completion are not the old one and then the new one"
    assert switch > 0, "tokens that were sampled before the update carry the new version"
    assert switch < len(flown.ids), f"after the update, none of {switch} tokens was sampled under the new weights"
    return switch


def _of(new: Reference, old: Reference, prompt: list[int], chunk: Chunk, tolerance: float) -> None:
    off_by, from_old = new.off_by(prompt, chunk), old.off_by(prompt, chunk)
    stale = ", and are those of the old ones" if from_old <= tolerance else ""
    assert off_by <= tolerance, f"after an update, logprobs are off by up to {off_by:.2g} from the new weights{stale}"


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
