"""Tests of what a backend tells about its weights, by which a run proves every update."""

from __future__ import annotations

import re

import pytest

from agentrl.errors import BackendError, PromptTooLong
from agentrl.inference.contract import HeldWeights
from agentrl.testing.backends.bench import BackendSuite, Bench, ask, needs_training, read
from agentrl.testing.backends.faults import UPDATE_FAULTS, FaultyBackend
from agentrl.testing.backends.reference import Reference
from agentrl.training.proof import Recorded, UpdateProof

__all__ = ["HeldTensors"]


class HeldTensors(BackendSuite):
    """Tests of ``held_weights`` and ``score``."""

    def test_it_holds_every_tensor_of_the_newest_weights(self, bench: Bench) -> None:
        needs_training(bench)
        first = self._held(bench)
        bench.update()
        held = self._held(bench)
        if first.tensors is not None and held.tensors is not None:
            same = [name for name, tensor in first.tensors.items() if held.tensors.get(name) == tensor]
            assert not same, f"the digest of {same[0]} and {len(same) - 1} others did not change with the weights"

    def test_given_tokens_are_scored_under_the_newest_weights(self, bench: Bench) -> None:
        needs_training(bench)
        texts = [prompt[:40] for prompt in bench.prompts(3)]
        for _ in range(2):
            for ids in texts:
                scores = bench.run(bench.backend.score(ids), "log-probabilities of given tokens")
                assert len(scores) == len(ids) - 1, f"{len(ids)} tokens came with {len(scores)} log-probabilities"
                expected = bench.reference.logprobs(ids[:1], ids[1:])[range(len(ids) - 1), ids[1:]]
                off_by = float((expected - expected.new_tensor(list(scores))).abs().max())
                assert off_by <= self.tolerance, f"given tokens are scored up to {off_by:.2g} off"
            bench.update()

    def test_tokens_beyond_the_context_are_not_scored(self, bench: Bench) -> None:
        needs_training(bench)
        longer = [bench.prompts(1)[0][0]] * (bench.capabilities.context_length + 1)
        with pytest.raises(PromptTooLong):
            bench.run(bench.backend.score(longer), "the refusal of tokens beyond the context")

    @pytest.mark.parametrize("name", [name for name, fault in UPDATE_FAULTS.items() if not fault.is_old_adapter])
    def test_a_run_finds_what_goes_wrong_with_an_update(self, name: str, bench: Bench) -> None:
        needs_training(bench)
        fault, old = UPDATE_FAULTS[name], bench.reference
        bench.reference = old.changed()
        try:
            held, said, itself = bench.run(_proven(bench, FaultyBackend(bench.backend, fault, old.model), old), name)
        finally:
            bench.update()  # Whole again, for the tests that follow.
        if itself:  # It stops the run as well, and in the backend's own words.
            return
        told = fault.told if held.tensors is not None else fault.scored
        if told is None:
            pytest.skip(f"it cannot tell what it holds: {held.inability}")
        assert re.search(told, said), f"the error for {name} is to match {told!r}, and is {said!r}"

    def _held(self, bench: Bench) -> HeldWeights:
        held = bench.run(bench.backend.held_weights(), "what weights it holds")
        wanted = bench.reference.version
        assert held.version == wanted, f"it holds version {held.version} and was given {wanted}"
        if held.tensors is None:
            assert held.inability, "it gives neither digests nor the reason why it cannot"
            return held
        with bench.reference.weights as weights:
            names = {name for name, _ in weights.tensors()}
            expected = weights.digests({name: tensor.dtype for name, tensor in held.tensors.items()})
        assert held.tensors.keys() <= expected.keys(), f"unknown: {sorted(held.tensors.keys() - expected.keys())}"
        missing = sorted(names - held.tensors.keys())
        tied = [name for name in missing if not held.tensors.keys() - names]
        assert not tied, f"it does not tell of {tied}"
        others = [name for name, tensor in held.tensors.items() if tensor != expected[name]]
        assert not others, f"digests of {others[:3]}, {len(others)} in all, are not those of the weights it was given"
        return held


async def _proven(bench: Bench, backend: FaultyBackend, old: Reference) -> tuple[HeldWeights, str, bool]:
    """What a backend holds before an update, the error by which a run finds out about it, and whose error it is.

    The last says whether the backend itself has refused the update.
    """
    proof, prompt = UpdateProof(lambda _: None), bench.prompts(2)[1]
    recorded = Recorded(prompt, (await read(backend, ask(prompt, max_tokens=24))).ids)
    held = await backend.held_weights()
    with old.weights as weights:
        await proof.prepare(backend, weights, recorded)
    with bench.reference.weights as weights:
        try:
            await backend.update_weights(weights)
        except BackendError as error:
            return held, str(error), True
        with pytest.raises(BackendError) as found:
            await proof.prove(backend, weights, prompt)
    return held, str(found.value), False
