"""Tests of adapters: a backend samples from the model with the newest one, merged by itself or beside its base."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agentrl.errors import BackendError
from agentrl.inference.contract import AdapterContext, Chunk
from agentrl.testing.backends.bench import BackendSuite, Bench, ask, joined, needs_training, read
from agentrl.testing.backends.faults import UPDATE_FAULTS, FaultyBackend
from agentrl.testing.backends.reference import Reference
from agentrl.testing.parts import model_folder
from agentrl.training.proof import Recorded, UpdateProof

if TYPE_CHECKING:
    from agentrl.learner.lending import LentWeights

__all__ = ["AdapterUpdates"]

_RANK = 4
_BEGUN = 16
"""How many tokens of a completion must have come for it to be under way."""


@dataclass(frozen=True, slots=True)
class _Adapted:
    """A model with an adapter of its own for each version."""

    lent: LentWeights
    merged: Reference
    """The whole model that it comes to."""


class AdapterUpdates(BackendSuite):
    """Tests of a backend that is given adapters; one that does not take them is given whole models."""

    @pytest.fixture(scope="class")
    @classmethod
    def adapting_bench(cls) -> Iterator[Bench]:
        """The backend, started anew for adapters."""
        if not cls.other_models:
            pytest.skip("it cannot be started a second time: `other_models` is false")
        from agentrl.config.training import LoraModel
        from agentrl.learner.adapters import plan_adapter

        folder = model_folder(cls.model)
        targets = plan_adapter(folder, LoraModel(rank=_RANK)).targets
        with cls.adapting(folder, AdapterContext(_RANK, targets)) as bench:
            yield bench

    def test_tokens_are_those_of_the_newest_adapter(self, adapting_bench: Bench) -> None:
        bench, base = adapting_bench, adapting_bench.reference
        needs_training(bench)
        proof = UpdateProof(lambda _: None)
        bench.run(_prepared(bench, proof), "the scores before adapters")
        for _ in range(2):
            new = _adapted(base, bench.reference.version + 1)
            bench.run(_proven(bench, proof, new), "an update that brings an adapter, and its proof")
            bench.reference = new.merged
            for compared in bench.sample(temperature=1.0, max_tokens=8):
                versions = set(compared.chunk.versions)
                assert versions == {new.merged.version}, f"after the update to {new.merged.version}: {versions}"
                assert compared.off_by <= self.tolerance, f"logprobs are off by up to {compared.off_by:.2g}"
        bench.reference = Reference(base.model, base.folder, bench.reference.version)

    def test_tokens_across_an_update_are_of_the_adapter_that_they_carry_the_version_of(
        self, adapting_bench: Bench
    ) -> None:
        bench = adapting_bench
        needs_training(bench)
        first = _adapted(bench.reference, bench.reference.version + 1)
        second = _adapted(bench.reference, bench.reference.version + 2)
        prompt = bench.prompts(1)[0]
        chunk, after = bench.run(
            _across(bench, first, second, prompt, self.update_tokens), "a completion across an update"
        )
        bench.reference = Reference(bench.reference.model, bench.reference.folder, second.merged.version)
        versions = list(chunk.versions)
        assert versions == sorted(versions), f"the versions of its tokens go back: {versions}"
        switch = versions.count(first.merged.version)
        assert switch >= _BEGUN, "it began under the newest adapter, and does not say so"
        if bench.capabilities.keeps_adapters:
            assert switch == len(versions), "it does not keep the adapter that it began with"
        before = max(first.merged.distances(prompt, chunk)[:switch])
        assert before <= self.tolerance, f"tokens of the old version are off by up to {before:.2g} from the old adapter"
        assert set(after.versions) == {second.merged.version}
        assert second.merged.off_by(prompt, after) <= self.tolerance, "a later request is not of the new adapter"

    @pytest.mark.parametrize("name", [name for name, fault in UPDATE_FAULTS.items() if fault.is_old_adapter])
    def test_a_run_finds_an_old_adapter(self, name: str, adapting_bench: Bench) -> None:
        bench, fault = adapting_bench, UPDATE_FAULTS[name]
        needs_training(bench)
        base = bench.reference
        sound, faulty = (_adapted(base, base.version + number) for number in (1, 2))
        proof = UpdateProof(lambda _: None)

        async def scenario() -> str:
            with sound.lent as weights:
                await bench.backend.update_weights(weights)
                await proof.prepare(bench.backend, weights, await _recorded(bench))
                striking = FaultyBackend(bench.backend, fault, sound.merged.model)
                striking.remember(weights)
            with faulty.lent as weights:
                try:
                    await striking.update_weights(weights)
                    with pytest.raises(BackendError) as found:
                        await proof.prove(bench.backend, weights, ())
                except BackendError as error:  # It stops the run as well, and in the backend's own words.
                    return error.message
            return str(found.value)

        said = bench.run(scenario(), name)
        bench.reference = Reference(base.model, base.folder, faulty.merged.version)
        told = f"{fault.told}|{fault.scored}"
        assert re.search(told, said), f"the error for {name} is to match {told!r}, and is {said!r}"


def _adapted(base: Reference, version: int) -> _Adapted:
    """``base`` with an adapter whose numbers are those of ``version``."""
    import torch

    from agentrl.config.training import LoraModel
    from agentrl.learner.adapters import LoraAdapter
    from agentrl.learner.lending import LentWeights
    from agentrl.learner.policy import Policy

    model, whole = copy.deepcopy(base.model), copy.deepcopy(base.model)
    adapter = LoraAdapter(model, LoraModel(rank=_RANK))
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for _, own in adapter.tensors():
            own.copy_(torch.randn(own.shape, generator=generator) * 0.08)
        lent = LentWeights(Policy(model, adapter=adapter), version, base.folder, borrower="the backend")
        for name, tensor in lent.tensors():
            whole.get_parameter(name).copy_(tensor)
    return _Adapted(lent, Reference(whole, base.folder, version))


async def _recorded(bench: Bench) -> Recorded:
    prompt = bench.prompts(2)[1]
    return Recorded(prompt, (await read(bench.backend, ask(prompt, max_tokens=24))).ids)


async def _prepared(bench: Bench, proof: UpdateProof) -> None:
    with bench.reference.weights as weights:
        await proof.prepare(bench.backend, weights, await _recorded(bench))


async def _proven(bench: Bench, proof: UpdateProof, new: _Adapted) -> None:
    with new.lent as weights:
        await bench.backend.update_weights(weights)
        await proof.prove(bench.backend, weights, bench.prompts(2)[1])


async def _across(
    bench: Bench, first: _Adapted, second: _Adapted, prompt: list[int], tokens: int
) -> tuple[Chunk, Chunk]:
    """A completion that begins under ``first`` and is under way when ``second`` comes, and one that begins after."""
    with first.lent as weights:
        await bench.backend.update_weights(weights)
    long = ask(prompt, stream=True, temperature=1.0, max_tokens=tokens, **bench.seed(1))
    chunks: list[Chunk] = []
    async with aclosing(bench.backend.generate(long)) as stream:
        async for chunk in stream:
            chunks.append(chunk)
            if len(joined(chunks).ids) >= _BEGUN:
                break
        with second.lent as weights:
            await bench.backend.update_weights(weights)
        after = await read(bench.backend, ask(prompt, temperature=1.0, max_tokens=6, **bench.seed(2)))
        chunks += [chunk async for chunk in stream]
    return joined(chunks), after
