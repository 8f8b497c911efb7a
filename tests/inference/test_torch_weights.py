"""Weights change in place: at once, whole or not at all, and nothing of the old ones is used again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.inference import models
from tests.inference.torch_backends import complete, off_by, plain_greedy, plain_logprobs, served, settled
from tests.inference.torch_backends import held as held_still
from transformers import PreTrainedModel

from agentrl.errors import BackendError, HostLostError, PromptTooLong
from agentrl.inference.contract import Chunk, GenerationRequest, HeldWeights, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.learner.lending import LentWeights
from agentrl.learner.policy import Policy

PROMPT = list(range(50, 80))
EXACT = 1e-5

Build = Callable[[], PreTrainedModel]


class ModelWeights:
    """What a learner hands over."""

    adapter = None

    def __init__(self, model: PreTrainedModel, version: int) -> None:
        self.model = model
        self.version = version

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.named_parameters()

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
        scores: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        return scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(models.qwen3(), tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize(
    "build",
    [models.qwen3, partial(models.qwen3, tied=True), models.qwen2, models.gemma3],
    ids=["untied", "tied", "tied with biases", "its own forward"],
)
def test_after_an_update_tokens_are_those_of_the_new_weights(build: Build, tmp_path: Path) -> None:
    folder = models.saved(build(), tmp_path)
    new = build().eval()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.3)

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        before = await complete(backend, PROMPT, temperature=0, max_tokens=8)
        await backend.update_weights(ModelWeights(new, 3))
        return before, await complete(backend, PROMPT, temperature=0, max_tokens=8)

    before, after = served(folder, use, version=2)
    assert set(before.versions) == {2}
    assert set(after.versions) == {3}
    assert after.ids == plain_greedy(new, PROMPT, 8)
    assert off_by(new, PROMPT, after) < EXACT < off_by(new, PROMPT, before)


def test_a_tied_weight_may_come_under_both_its_names(tmp_path: Path) -> None:
    new = models.qwen3(seed=1, tied=True).eval()

    class Both(ModelWeights):
        def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
            yield from self.model.state_dict().items()

    async def use(backend: TorchBackend) -> Chunk:
        await backend.update_weights(Both(new, 1))
        return await complete(backend, PROMPT, max_tokens=5)

    assert off_by(new, PROMPT, served(models.saved(models.qwen3(tied=True), tmp_path), use)) < EXACT


def test_requests_in_flight_go_on_under_the_new_weights_and_share_nothing(folder: Path) -> None:
    """One request is kept decoding across the update; the same prompt, asked anew, owes nothing to it."""
    old, new = models.qwen3().eval(), models.qwen3(seed=1).eval()

    async def use(backend: TorchBackend) -> tuple[list[Chunk], Chunk, Chunk, Chunk]:
        request = GenerationRequest(PROMPT, Sampling(seed=5, max_tokens=200), stream=True)
        flying = backend.generate(request)
        parts = [await anext(flying) for _ in range(3)]
        await backend.update_weights(ModelWeights(new, 1))
        during = await complete(backend, PROMPT, temperature=0, max_tokens=8)
        parts += [part async for part in flying]
        flown = [token for part in parts for token in part.ids]
        after = await complete(backend, [*PROMPT, *flown[:30]], temperature=0, max_tokens=8)
        return parts, during, after, _joined(parts)

    parts, during, after, flown = served(folder, use)
    switch = flown.versions.index(1)
    assert flown.versions == (0,) * switch + (1,) * (len(flown.ids) - switch)
    assert 3 <= switch < len(flown.ids) == 200
    before = Chunk(flown.ids[:switch], flown.logprobs[:switch], flown.versions[:switch])
    assert off_by(old, PROMPT, before) < EXACT
    assert during.ids == plain_greedy(new, PROMPT, 8)
    assert off_by(new, PROMPT, during) < EXACT
    assert off_by(new, [*PROMPT, *flown.ids[:30]], after) < EXACT, "what a mixed request left is not reused"
    assert parts[-1].finish == "length"


def test_what_is_in_flight_can_begin_its_kv_anew_and_is_then_the_new_weights_own(folder: Path) -> None:
    old, new = models.qwen3().eval(), models.qwen3(seed=1).eval()

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        flying = backend.generate(GenerationRequest(PROMPT, Sampling(seed=5, max_tokens=120), stream=True))
        parts = [await anext(flying) for _ in range(3)]
        await backend.update_weights(ModelWeights(new, 1))
        flown = _joined(parts + [part async for part in flying])
        switch = flown.versions.index(1)
        return flown, await complete(backend, [*PROMPT, *flown.ids[:switch]], seed=5, max_tokens=120 - switch)

    flown, fresh = served(folder, use, in_flight="recompute")
    switch = flown.versions.index(1)
    assert flown.versions == (0,) * switch + (1,) * (120 - switch)
    assert off_by(old, PROMPT, _part(flown, slice(switch))) < EXACT
    assert off_by(new, [*PROMPT, *flown.ids[:switch]], _part(flown, slice(switch, None))) < EXACT
    assert (flown.ids[switch:], flown.logprobs[switch:]) == (fresh.ids, fresh.logprobs), "bit for bit"


def test_whatever_waits_runs_or_is_being_computed_goes_on_after_it_begins_anew(folder: Path) -> None:
    """Two rows for seven requests, two of which share a long prompt that is being computed at the update."""
    new = models.qwen3(seed=1).eval()
    long = [index % models.VOCABULARY for index in range(120)]
    prompts = [PROMPT, long, long, PROMPT[:5], PROMPT[:9], long[:60], PROMPT]

    async def use(backend: TorchBackend) -> list[Chunk]:
        asked = [
            asyncio.create_task(complete(backend, prompt, seed=seed, max_tokens=40))
            for seed, prompt in enumerate(prompts)
        ]
        await settled(lambda: backend.counters().tokens > 3)
        with held_still(backend):
            cancelled = asyncio.create_task(complete(backend, [7, 8, 9], max_tokens=40))
            await asyncio.sleep(0)
            update = asyncio.create_task(backend.update_weights(ModelWeights(new, 1)))
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.sleep(0)
        await update
        return await asyncio.gather(*asked)

    done = served(folder, use, concurrency=2, in_flight="recompute", max_batch_tokens=4)
    for prompt, chunk in zip(prompts, done, strict=True):
        assert len(chunk.ids) == 40
        switch = chunk.versions.index(1)
        assert chunk.versions == (0,) * switch + (1,) * (40 - switch)
        assert off_by(new, [*prompt, *chunk.ids[:switch]], _part(chunk, slice(switch, None))) < EXACT


@pytest.mark.parametrize("in_flight", ["keep", "recompute"])
def test_identical_weights_of_a_new_version_change_no_number(in_flight: str, folder: Path) -> None:
    same = models.qwen3().eval()

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        undisturbed = await complete(backend, PROMPT, seed=5, max_tokens=120)
        flying = backend.generate(GenerationRequest(PROMPT, Sampling(seed=5, max_tokens=120), stream=True))
        parts = [await anext(flying) for _ in range(3)]
        await backend.update_weights(ModelWeights(same, 1))
        return undisturbed, _joined(parts + [part async for part in flying])

    undisturbed, flown = served(folder, use, in_flight=in_flight)
    assert set(flown.versions) == {0, 1}
    assert (flown.ids, flown.logprobs) == (undisturbed.ids, undisturbed.logprobs), "a ratio of 1 exactly"


def _part(chunk: Chunk, part: slice) -> Chunk:
    return Chunk(chunk.ids[part], chunk.logprobs[part], chunk.versions[part])


def _joined(parts: list[Chunk]) -> Chunk:
    return Chunk(*(sum((getattr(part, name) for part in parts), ()) for name in ("ids", "logprobs", "versions")))


def test_a_prompt_half_computed_at_the_update_serves_only_who_began_with_it(folder: Path) -> None:
    """Two requests with one long prompt: the second comes after the update, while the first is being computed."""
    new = models.qwen3(seed=1).eval()
    prompt = [index % models.VOCABULARY for index in range(240)]

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk, Chunk]:
        first = asyncio.create_task(complete(backend, prompt, max_tokens=4))
        await settled(lambda: backend.counters().running == 1)
        await backend.update_weights(ModelWeights(new, 1))
        second = await complete(backend, prompt, max_tokens=4)
        return await first, second, await complete(backend, prompt, max_tokens=4)

    first, second, third = served(folder, use, max_batch_tokens=2)
    assert set(first.versions) == {1}, "the update came while its prompt was computed"
    assert off_by(new, prompt, first) > 0.01
    assert off_by(new, prompt, second) < EXACT
    assert off_by(new, prompt, third) < EXACT


@pytest.mark.parametrize("fault", ["missing", "unknown", "wrongly shaped"])
def test_weights_that_do_not_fit_leave_the_old_ones_whole(fault: str, folder: Path) -> None:
    class Faulty(ModelWeights):
        def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
            for index, (name, tensor) in enumerate(self.model.named_parameters()):
                if index != 4:
                    yield name, tensor
                elif fault != "missing":
                    yield (name + ".extra", tensor) if fault == "unknown" else (name, tensor[:-1])

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        before = await complete(backend, PROMPT, temperature=0, max_tokens=8)
        with pytest.raises(BackendError, match=f"1 {fault}"):
            await backend.update_weights(Faulty(models.qwen3(seed=1), 9))
        return before, await complete(backend, PROMPT, temperature=0, max_tokens=8)

    before, after = served(folder, use)
    assert before == after
    assert set(after.versions) == {0}


def test_a_learner_that_is_lost_in_mid_update_is_no_failure_of_the_engine(folder: Path) -> None:
    class Lost(ModelWeights):
        def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
            raise HostLostError("learner rank 1 was ended by SIGKILL")

    async def use(backend: TorchBackend) -> None:
        with pytest.raises(HostLostError, match="learner rank 1"):
            await backend.update_weights(Lost(models.qwen3(), 1))

    served(folder, use)


def test_weights_that_diverged_fail_requests_and_better_ones_heal(folder: Path) -> None:
    broken, sound = models.qwen3(), models.qwen3(seed=1).eval()
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")

    async def use(backend: TorchBackend) -> list[Chunk]:
        long = [asyncio.create_task(complete(backend, PROMPT, seed=seed, max_tokens=200)) for seed in range(4)]
        await settled(lambda: backend.counters().tokens > 40)
        await backend.update_weights(ModelWeights(broken, 1))
        for task in long:
            with pytest.raises(BackendError, match="not finite"):
                await task
        await backend.update_weights(ModelWeights(sound, 2))
        # Long enough to look, through a mask, at columns that the broken rows had reached.
        return await asyncio.gather(*(complete(backend, [9, 9], seed=seed, max_tokens=90) for seed in range(4)))

    for chunk in served(folder, use):
        assert off_by(sound, [9, 9], chunk) < EXACT


@pytest.mark.parametrize(
    "build",
    [models.qwen3, partial(models.qwen3, tied=True), models.qwen2, models.gemma3],
    ids=["qwen3", "qwen3, tied", "qwen2", "gemma3"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_tells_what_it_holds_from_its_own_memory(build: Build, dtype: str, tmp_path: Path) -> None:
    folder = models.saved(build(), tmp_path)
    new = build().eval()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.3)

    async def use(backend: TorchBackend) -> list[HeldWeights]:
        before = await backend.held_weights()
        await backend.update_weights(ModelWeights(new, 3))
        after = await backend.held_weights()
        _, engine = backend._running()
        with torch.inference_mode():
            fused = getattr(engine._decoder._network, "_layers", None)
            touched = fused[1]._joined[0][0] if fused else engine._decoder.model.get_parameter("model.norm.weight")
            touched[0] += 1
        return [before, after, await backend.held_weights()]

    held = served(folder, use, version=2, dtype=dtype)
    assert [each.version for each in held] == [2, 3, 3]
    for found, model in zip(held, (models.loaded(folder), new), strict=False):
        names = {name: dtype for name, _ in model.named_parameters()}
        lent = LentWeights(Policy(model), found.version, folder, borrower="the engine")
        assert found.tensors == lent.digests(names)
        assert {each.dtype for each in found.tensors.values()} == {dtype}
    changed = {name for name, tensor in held[1].tensors.items() if held[2].tensors[name] != tensor}
    assert len(changed) == 1, "only what its kernels read counts, and it is read anew"


def test_a_tied_tensor_has_its_digest_under_both_names(tmp_path: Path) -> None:
    model = models.qwen3(tied=True)
    lent = LentWeights(Policy(model), 1, tmp_path, borrower="the engine")
    both = lent.digests({"lm_head.weight": "float32", "model.embed_tokens.weight": "bfloat16", "nothing": "float32"})
    assert both.keys() == {"lm_head.weight", "model.embed_tokens.weight"}
    assert both["lm_head.weight"] == lent.digests({"model.embed_tokens.weight": "float32"})["model.embed_tokens.weight"]
    assert both["lm_head.weight"].digest != both["model.embed_tokens.weight"].digest


@pytest.mark.parametrize("length", [2, 5, 16, 17, 18, 90])
def test_given_tokens_are_scored_as_requests_are(length: int, folder: Path) -> None:
    ids = [index * 7 % models.VOCABULARY for index in range(length)]

    async def use(backend: TorchBackend) -> tuple[Sequence[float], Sequence[float], Chunk]:
        first = await backend.score(ids)
        return first, await backend.score(ids), await complete(backend, ids, max_tokens=2)

    first, again, _ = served(folder, use, max_batch_tokens=32)
    expected = plain_logprobs(models.loaded(folder), ids[:1], ids[1:])
    expected = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert first == again == pytest.approx(expected, abs=EXACT)


def test_what_cannot_be_scored_is_refused(folder: Path) -> None:
    async def use(backend: TorchBackend) -> None:
        assert list(await backend.score([3])) == []
        with pytest.raises(PromptTooLong):
            await backend.score([1] * 65)
        with pytest.raises(BackendError, match="token id 99999"):
            await backend.score([1, 99999])

    served(folder, use, context_length=64)
