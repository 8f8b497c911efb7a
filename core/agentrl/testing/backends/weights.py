"""New weights: in place for every token from then on, and nothing of the old ones used again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agentrl.inference.contract import Chunk
from agentrl.testing.backends.base import BackendSuite, needs_training
from agentrl.testing.backends.bench import Bench, ask
from agentrl.testing.backends.flight import flights
from agentrl.testing.backends.reference import Reference

__all__ = ["WeightUpdates"]


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
        for flight in flights(bench, self.flight, temperature, head_only=True):
            for how, chunk in flight.flown.items():
                switch = flight.switch(how)
                before = _fault(flight.old, flight.prompt, chunk, temperature, self.tolerance, slice(switch))
                after = _fault(flight.new, flight.prompt, chunk, temperature, self.tolerance, slice(switch, None))
                assert not before, f"{how}, tokens of the old version are not those of the old weights: {before}"
                assert not after, f"{how}, tokens of the new version are not those of the new weights: {after}"

    @sampled_or_greedy
    def test_what_is_under_way_leaves_no_stale_prefix_to_others(self, temperature: float, bench: Bench) -> None:
        needs_training(bench)
        for flight in flights(bench, self.flight, temperature):
            self._is_new(flight.new, flight.old, flight.prompt, flight.beside, temperature)
            for chunk in flight.flown.values():
                longer = [*flight.prompt, *chunk.ids[:40]]
                (after,) = bench.complete(ask(longer, temperature=temperature, max_tokens=6))
                self._is_new(flight.new, flight.old, longer, after, temperature)

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


def _fault(
    of: Reference, prompt: list[int], chunk: Chunk, temperature: float, tolerance: float, part: slice = slice(None)
) -> str:
    """In what a part of ``chunk`` is not what ``of`` would sample and say of it; empty where it is."""
    off_by = max(of.distances(prompt, chunk)[part], default=0.0)
    behind = max(of.behind(prompt, chunk)[part], default=0.0)
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
