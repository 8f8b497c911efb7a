"""The engine computes with the learner's own memory: it stands still while that changes, and uses nothing old again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from tests.algorithms.algorithms import grpo
from tests.gpu.shapes import filled_batch
from tests.inference import models
from tests.inference.torch_backends import complete, off_by, settled
from transformers import PreTrainedModel

from agentrl.config.training import TrainingSection
from agentrl.errors import BackendError, ConfigError
from agentrl.inference.contract import BackendContext, Chunk
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.sharing.contract import SharesWeights, SharingBackend
from agentrl.learner.learner import Learner

PROMPT = list(range(50, 80))
EXACT = 1e-5
BATCH = filled_batch(models.VOCABULARY, 64, passes=1, rows=4)
T = TypeVar("T")


def learner_of(folder: Path, **training: Any) -> Learner:
    settings = TrainingSection(**{"learning_rate": 2e-2, "device": "cpu", **training})
    return Learner(folder, settings, grpo().loss, seed=0)


def shared(
    learner: Learner,
    use: Callable[[TorchBackend], Awaitable[T]],
    *,
    context: dict[str, Any] | None = None,
    **options: Any,
) -> T:
    """What ``use`` makes of an engine that shares the weights of ``learner``."""
    options = {"share_weights": True, **options}
    backend = TorchBackend(BackendContext(learner._source, options=options, **(context or {})))
    memory = learner.share("the engine", backend.paused)
    assert backend.share(memory)

    async def run() -> T:
        await backend.start()
        try:
            async with asyncio.timeout(60):
                return await use(backend)
        finally:
            await backend.stop()
            memory.give_back()

    return asyncio.run(run())


def snapshot(learner: Learner, folder: Path) -> PreTrainedModel:
    """A plain model with the weights that the learner has now."""
    model = models.loaded(folder)
    with learner.lend("a test") as weights, torch.no_grad():
        own = dict(model.named_parameters())
        for name, tensor in weights.tensors():
            own[name].copy_(tensor)
    return model


def has_sampled(backend: TorchBackend, tokens: int) -> bool:
    return backend.counters().tokens > tokens


def bytes_of(model: Any) -> dict[str, int]:
    return {name: each.data_ptr() for name, each in model.named_parameters()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(models.qwen3(), tmp_path_factory.mktemp("qwen3"))


def test_both_sides_keep_the_contract(folder: Path) -> None:
    assert isinstance(TorchBackend(BackendContext(folder)), SharingBackend)
    assert isinstance(learner_of(folder), SharesWeights)


@pytest.mark.parametrize("reproducible", ["auto", False])
@pytest.mark.parametrize(
    "build",
    [models.qwen3, partial(models.qwen3, tied=True), models.qwen2, models.gemma3, models.phi3_long],
    ids=["untied", "tied", "tied with biases", "its own forward", "joined already"],
)
def test_both_have_one_memory_and_tokens_are_those_of_the_weights_in_it(
    build: Callable[[], PreTrainedModel], reproducible: object, tmp_path: Path
) -> None:
    folder = models.saved(build(), tmp_path)
    learner = learner_of(folder)

    async def use(backend: TorchBackend) -> list[tuple[Chunk, PreTrainedModel]]:
        engine = backend._running()[1]._decoder.model
        assert bytes_of(engine) == bytes_of(learner.model)
        seen = []
        for _ in range(3):
            seen.append((await complete(backend, PROMPT, max_tokens=6, seed=1), snapshot(learner, folder)))
            await asyncio.to_thread(learner.step, BATCH)
            with learner.lend("a test") as weights:
                assert await backend.update_weights(weights) == 0
            assert bytes_of(engine) == bytes_of(learner.model), "they stay where they are"
        return seen

    seen = shared(learner, use, reproducible=reproducible, context_length=64)
    for version, (chunk, model) in enumerate(seen):
        assert set(chunk.versions) == {version}
        assert off_by(model, PROMPT, chunk) < EXACT
    first, second = (model for _, model in seen[:2])
    assert off_by(second, PROMPT, seen[0][0]) > 10 * EXACT > off_by(first, PROMPT, seen[0][0])


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_model_lies_as_the_engine_computes_soonest_and_learns_the_same(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU that is column by column. The optimiser's moments follow, also those of a run that is resumed."""
    folder = models.saved(models.qwen3(tied=tied), tmp_path / "model")
    monkeypatch.setattr("agentrl.inference.engine.loading._SMALL", 0)
    plain, learner = learner_of(folder), learner_of(folder)
    for each in (plain, learner):
        each.step(BATCH)  # moments by rows

    async def use(backend: TorchBackend) -> Chunk:
        down = learner.model.get_parameter("model.layers.0.mlp.down_proj.weight")
        assert bytes_of(backend._running()[1]._decoder.model) == bytes_of(learner.model)
        assert down.stride() == (1, down.shape[0])
        await asyncio.to_thread(learner.step, BATCH)
        plain.step(BATCH)
        learner.save(tmp_path / "saved")
        learner.save_state(tmp_path / "saved")
        return await complete(backend, PROMPT, max_tokens=8)

    chunk = shared(learner, use)
    assert off_by(snapshot(learner, folder), PROMPT, chunk) < EXACT
    resumed = learner_of(tmp_path / "saved")
    resumed.load_state(tmp_path / "saved")  # moments by columns, and weights by rows
    for each in (plain, learner, resumed):
        each.step(BATCH)
    expected = dict(plain.model.named_parameters())
    for each in (learner, resumed):
        for name, parameter in each.model.named_parameters():
            torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)


def slowed(learner: Learner, monkeypatch: pytest.MonkeyPatch, during: Callable[[], None]) -> None:
    """Have each update of the weights take its time: half of them have new numbers while ``during`` runs."""
    step = learner._optimiser.step

    def slow(number: int, loss: float) -> dict[str, float]:
        before = [each.detach().clone() for each in learner.model.parameters()]
        metrics = step(number, loss)
        with torch.no_grad():
            after = [each.detach().clone() for each in learner.model.parameters()]
            for parameter, old in list(zip(learner.model.parameters(), before, strict=True))[::2]:
                parameter.copy_(old)
            during()
            for parameter, new in zip(learner.model.parameters(), after, strict=True):
                parameter.copy_(new)
        return metrics

    monkeypatch.setattr(learner._optimiser, "step", slow)


@pytest.mark.parametrize("in_flight", ["recompute", "keep"])
@pytest.mark.parametrize("reproducible", ["auto", False])
def test_no_token_is_of_weights_that_are_changing(
    in_flight: str, reproducible: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are in flight at every change, some decoding, some with a prompt that is being computed.

    A torn read would show in a log-probability: each is compared with a plain forward under the version it states.
    """
    learner = learner_of(folder)
    slowed(learner, monkeypatch, lambda: time.sleep(0.02))
    versions = [snapshot(learner, folder)]
    long = [index * 7 % models.VOCABULARY for index in range(100)]

    async def asking(
        backend: TorchBackend, prompt: Sequence[int], done: asyncio.Event
    ) -> list[tuple[Sequence[int], Chunk]]:
        made = []
        for seed in range(100):
            if done.is_set():
                break
            asked = [*prompt, 5 + seed]
            made.append((asked, await complete(backend, asked, seed=seed, max_tokens=60)))
        return made

    async def use(backend: TorchBackend) -> list[tuple[Sequence[int], Chunk]]:
        done = asyncio.Event()
        tasks = [asyncio.create_task(asking(backend, prompt, done)) for prompt in (PROMPT, PROMPT[:5], long, long)]
        for _ in range(8):
            await settled(lambda: backend.counters().running >= 3)
            await settled(partial(has_sampled, backend, backend.counters().tokens + 20))
            await asyncio.to_thread(learner.step, BATCH)
            versions.append(snapshot(learner, folder))
        done.set()
        return [each for made in await asyncio.gather(*tasks) for each in made]

    # Where KV is kept, a prompt whose computation began under older weights would differ, and rightly so.
    options = {"reproducible": reproducible, "max_batch_tokens": 8 if in_flight == "recompute" else 2048}
    made = shared(learner, use, context={"in_flight": in_flight, "max_concurrency": 4}, **options)
    crossed = 0
    for prompt, chunk in made:
        assert list(chunk.versions) == sorted(chunk.versions)
        crossed += len(set(chunk.versions)) > 1
        for version in set(chunk.versions) if in_flight == "recompute" else {chunk.versions[0]}:
            at = [index for index, each in enumerate(chunk.versions) if each == version]
            part = Chunk(chunk.ids[at[0] : at[-1] + 1], chunk.logprobs[at[0] : at[-1] + 1], ())
            assert off_by(versions[version], [*prompt, *chunk.ids[: at[0]]], part) < EXACT
    assert crossed >= 4, "requests were in flight at the changes"


def test_a_step_of_several_updates_is_one_pause(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(folder, minibatches=2)
    halves = replace(BATCH, update=(BATCH.targets.path % 2).astype(np.int64))
    counted: list[int] = []

    async def use(backend: TorchBackend) -> Chunk:
        slowed(learner, monkeypatch, lambda: counted.append(backend.counters().tokens))
        asked = asyncio.create_task(complete(backend, PROMPT, max_tokens=150))
        await settled(lambda: backend.counters().tokens > 5)
        made = await asyncio.to_thread(learner.step, halves)
        assert made.metrics["learner/updates"] == 2
        return await asked

    chunk = shared(learner, use)
    assert len(counted) == 2
    assert counted[0] == counted[1] > 5, "nothing is sampled between the updates"
    assert set(chunk.versions) == {0, 1}


def test_a_step_that_learns_nothing_is_a_version_too(folder: Path) -> None:
    learner = learner_of(folder)
    nothing = replace(BATCH, advantage=np.zeros_like(BATCH.advantage))

    async def use(backend: TorchBackend) -> Chunk:
        await asyncio.to_thread(learner.step, nothing)
        return await complete(backend, PROMPT, max_tokens=3)

    assert set(shared(learner, use).versions) == {1}


def test_weights_that_are_loaded_are_followed(folder: Path, tmp_path: Path) -> None:
    learner = learner_of(folder)
    learner.step(BATCH)
    learner.save(tmp_path)
    learner.save_state(tmp_path)
    saved = snapshot(learner, folder)

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        await asyncio.to_thread(learner.step, BATCH)
        asked = asyncio.create_task(complete(backend, PROMPT, max_tokens=100))
        await settled(lambda: backend.counters().tokens > 3)
        await asyncio.to_thread(learner.go_back, tmp_path, 3)
        return await asked, await complete(backend, PROMPT, max_tokens=5)

    flown, after = shared(learner, use)
    assert set(flown.versions) == {2, 3}
    assert set(after.versions) == {3}
    assert off_by(saved, PROMPT, after) < EXACT


def test_after_a_change_that_failed_nothing_is_sampled_until_another_has_ended_well(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(folder)
    learner.save(tmp_path)
    learner.save_state(tmp_path)
    sound = snapshot(learner, folder)

    def fail() -> None:
        raise MemoryError("no room for the update")

    async def use(backend: TorchBackend) -> Chunk:
        slowed(learner, monkeypatch, fail)
        with pytest.raises(MemoryError):
            await asyncio.to_thread(learner.step, BATCH)
        asked = asyncio.create_task(complete(backend, PROMPT, max_tokens=5))
        await asyncio.sleep(0.1)
        assert backend.counters().tokens == 0
        await asyncio.to_thread(learner.go_back, tmp_path, 1)
        return await asked

    chunk = shared(learner, use)
    assert set(chunk.versions) == {1}
    assert off_by(sound, PROMPT, chunk) < EXACT


def test_an_engine_that_stands_still_can_be_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(folder)

    def fail() -> None:
        raise MemoryError("no room for the update")

    async def use(backend: TorchBackend) -> None:
        slowed(learner, monkeypatch, fail)
        with pytest.raises(MemoryError):
            await asyncio.to_thread(learner.step, BATCH)
        asked = asyncio.create_task(complete(backend, PROMPT))
        await asyncio.sleep(0)
        await backend.stop()
        with pytest.raises(BackendError, match="the engine was stopped"):
            await asked

    shared(learner, use)


def test_an_engine_that_does_not_pause_in_time_is_an_error_that_changes_nothing(folder: Path) -> None:
    learner = learner_of(folder)
    before = snapshot(learner, folder).state_dict()
    let_go = threading.Event()

    async def use(backend: TorchBackend) -> Chunk:
        assert backend._thread is not None
        backend._thread.send(lambda engine: let_go.wait(20) and None)
        with pytest.raises(BackendError, match=r"waited 0.1 s for the engine to pause"):
            await asyncio.to_thread(learner.step, BATCH)
        let_go.set()
        return await complete(backend, PROMPT, max_tokens=3)

    chunk = shared(learner, use, context={"timeout": 0.1})
    after = snapshot(learner, folder).state_dict()
    assert set(chunk.versions) == {0}
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


# What cannot be shared


@pytest.mark.parametrize(
    ("training", "options", "said"),
    [
        ({}, {"dtype": "bfloat16"}, "the learner computes in float32 and the engine in bfloat16"),
        ({"precision": "bfloat16"}, {"dtype": "float32"}, "the learner computes in bfloat16 and the engine in float32"),
    ],
)
def test_another_type_means_a_copy_and_the_reason_is_told(
    training: dict[str, Any], options: dict[str, Any], said: str, folder: Path
) -> None:
    learner, notes = learner_of(folder, **training), list[str]()
    memory = learner.share("the engine", lambda: pytest.fail("nobody pauses"))
    assert not TorchBackend(BackendContext(folder, options=options, say=notes.append)).share(memory)
    assert notes == [f"the engine keeps a copy of the learner's weights: {said}"]
    with pytest.raises(ConfigError, match=f"share_weights=true: {said}"):
        TorchBackend(BackendContext(folder, options=options | {"share_weights": True})).share(memory)
    silent = TorchBackend(BackendContext(folder, options=options | {"share_weights": False}, say=pytest.fail))
    assert not silent.share(memory)


def test_a_model_of_other_parameters_means_a_copy_and_the_reason_is_told(folder: Path, tmp_path: Path) -> None:
    other, said = models.saved(models.qwen2(), tmp_path), list[str]()

    async def started(share: object) -> tuple[Chunk, bool]:
        learner = learner_of(folder)
        options = {"share_weights": share}
        backend = TorchBackend(BackendContext(other, version=4, options=options, say=said.append))
        assert backend.share(learner.share("the engine", backend.paused))
        await backend.start()
        try:
            copied = not bytes_of(backend._running()[1]._decoder.model).items() & bytes_of(learner.model).items()
            chunk = await complete(backend, PROMPT, max_tokens=4)
            learner.step(BATCH)  # nobody has to pause for it
            return chunk, copied
        finally:
            await backend.stop()

    chunk, copied = asyncio.run(started("auto"))
    assert copied
    assert set(chunk.versions) == {4}
    assert "its model has no parameter" in said[0]
    assert "keeps a copy" in said[0]
    with pytest.raises(BackendError, match="cannot share the learner's weights: its model has no parameter"):
        asyncio.run(started(True))


def test_a_learner_elsewhere_means_a_copy(folder: Path) -> None:
    notes: list[str] = []
    assert not TorchBackend(BackendContext(folder, say=notes.append)).share(None)
    assert notes == ["the engine keeps a copy of the learner's weights: the learner is in other processes"]


def test_weights_are_shared_with_one_engine(folder: Path) -> None:
    learner = learner_of(folder)
    first = learner.share("the engine", lambda: pytest.fail("nobody pauses"))
    with pytest.raises(RuntimeError, match="shared with the engine already"):
        learner.share("another", lambda: pytest.fail("nobody pauses"))
    first.give_back()
    with pytest.raises(RuntimeError, match="the engine used the learner's weights after it had given them back"):
        next(first.tensors())
    learner.share("another", lambda: pytest.fail("nobody pauses"))


def test_what_is_not_the_shared_memory_is_refused(folder: Path) -> None:
    learner, other = learner_of(folder), learner_of(folder)

    async def use(backend: TorchBackend) -> None:
        with other.lend("a test") as weights, pytest.raises(BackendError, match="or of another learner"):
            await backend.update_weights(weights)
        moved = learner.model.get_parameter("model.norm.weight")
        moved.data = moved.data.clone()
        moved_away = pytest.raises(BackendError, match=r"model.norm.weight is elsewhere by now")
        with learner.lend("a test") as weights, moved_away:
            await backend.update_weights(weights)

    shared(learner, use)


def test_a_change_that_the_engine_was_not_told_of_is_refused(folder: Path) -> None:
    learner = learner_of(folder)

    async def use(backend: TorchBackend) -> None:
        learner.version = 4
        with (
            learner.lend("a test") as weights,
            pytest.raises(BackendError, match="as version 0, and that is version 4"),
        ):
            await backend.update_weights(weights)

    shared(learner, use)


# Adapters


@pytest.mark.parametrize("reproducible", ["auto", False])
def test_of_an_adapted_model_everything_else_is_shared_and_the_adapter_alone_comes(
    reproducible: object, folder: Path
) -> None:
    learner = learner_of(folder, lora={"rank": 4, "targets": ["q_proj", "down_proj"]})
    assert learner.adapter is not None
    size = sum(tensor.nbytes for _, tensor in learner.adapter.tensors())

    async def use(backend: TorchBackend) -> list[Chunk]:
        engine = dict(backend._running()[1]._decoder.model.named_parameters())
        for name, parameter, layer in learner.adapter.plain():
            assert (engine[name].data_ptr() == parameter.data_ptr()) == (layer is None), name
        made = [await complete(backend, PROMPT, max_tokens=5)]
        for _ in range(2):
            await asyncio.to_thread(learner.step, BATCH)
            with learner.lend("a test") as weights:
                names = weights.names()
                assert await backend.update_weights(weights) == size
                held = await backend.held_weights()
                assert held.tensors == weights.digests(dict.fromkeys(names, "float32"))
            made.append(await complete(backend, PROMPT, max_tokens=5))
        return made

    before, _, after = shared(learner, use, reproducible=reproducible)
    assert (set(before.versions), set(after.versions)) == ({0}, {2})
    assert off_by(models.loaded(folder), PROMPT, before) < EXACT
    assert off_by(snapshot(learner, folder), PROMPT, after) < EXACT
