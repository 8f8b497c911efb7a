"""Cancellation, failures and the end of an engine: nobody waits for ever and nobody pays for another."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from tests.inference import models
from tests.inference.torch_backends import complete, held, off_by, served, serving, settled

from agentrl.errors import BackendError
from agentrl.inference.contract import BackendContext, Chunk, GenerationRequest, Sampling
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.cache import KVBlock
from agentrl.inference.engine.engine import Engine
from agentrl.inference.engine.model import Decoder

LONG = {"max_tokens": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(models.qwen3(), tmp_path_factory.mktemp("qwen3"))


def _idle(backend: TorchBackend) -> bool:
    counters = backend.counters()
    return (counters.running, counters.waiting) == (0, 0)


def test_a_cancelled_task_frees_its_row_and_its_place_in_the_queue(folder: Path) -> None:
    async def use(backend: TorchBackend) -> Chunk:
        tasks = [asyncio.create_task(complete(backend, [seed], seed=seed, **LONG)) for seed in range(5)]
        await settled(lambda: backend.counters().running == 2 and backend.counters().waiting == 3)
        survivor = tasks.pop(1)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended)
        chunk = await survivor
        await settled(lambda: _idle(backend))
        assert backend.counters().tokens < 400, "what was abandoned was not sampled to its end"
        return chunk

    model = models.qwen3().eval()
    chunk = served(folder, use, concurrency=2)
    assert len(chunk.ids) == 200
    assert off_by(model, [1], chunk) < 1e-5


def test_a_closed_stream_frees_its_row(folder: Path) -> None:
    async def use(backend: TorchBackend) -> None:
        stream = backend.generate(GenerationRequest([1, 2], Sampling(**LONG), stream=True))
        await anext(stream)
        await stream.aclose()
        await settled(lambda: _idle(backend))
        assert backend.counters().tokens < 200

    served(folder, use)


def test_a_prompt_that_is_being_computed_can_be_abandoned(folder: Path) -> None:
    async def use(backend: TorchBackend) -> Chunk:
        prompt = [3] * 200
        leader, follower = (asyncio.create_task(complete(backend, prompt, max_tokens=2)) for _ in range(2))
        await settled(lambda: backend.counters().running == 2)
        leader.cancel()
        chunk = await follower
        lonely = asyncio.create_task(complete(backend, [4] * 200, max_tokens=2))
        await settled(lambda: backend.counters().running == 1)
        lonely.cancel()
        await settled(lambda: _idle(backend))
        return chunk

    assert len(served(folder, use, max_batch_tokens=2).ids) == 2


def test_a_loop_that_ends_without_its_readers_leaves_nothing_behind(folder: Path) -> None:
    async def use(backend: TorchBackend) -> Chunk:
        stream = backend.generate(GenerationRequest([1, 2], Sampling(**LONG), stream=True))

        def elsewhere() -> None:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(anext(stream))
            loop.close()

        await asyncio.to_thread(elsewhere)
        await settled(lambda: _idle(backend))
        assert backend.counters().tokens < 200
        return await complete(backend, [1], max_tokens=3)

    assert len(served(folder, use).ids) == 3


def test_two_loops_in_two_threads_share_one_engine(folder: Path) -> None:
    async def many(backend: TorchBackend, first: int) -> list[Chunk]:
        return await asyncio.gather(*(complete(backend, [seed], seed=seed, max_tokens=20) for seed in range(first, 12)))

    async def use(backend: TorchBackend) -> tuple[list[Chunk], list[Chunk]]:
        there = asyncio.to_thread(lambda: asyncio.run(many(backend, 0)))
        return await asyncio.gather(many(backend, 0), there)

    here, there = served(folder, use, concurrency=6)
    assert [chunk.ids for chunk in here] == [chunk.ids for chunk in there]


def test_a_model_that_fails_once_fails_who_was_in_that_batch_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token id beyond the embedding reaches a prompt's forward; another request decodes beside it."""
    prefill = Decoder.prefill

    def poisoned(self, ids, positions, block):
        return prefill(self, ids + models.VOCABULARY * (ids == 77), positions, block)

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        monkeypatch.setattr(Decoder, "prefill", poisoned)
        decoding = asyncio.create_task(complete(backend, [1], **LONG))
        await settled(lambda: backend.counters().tokens > 0)
        with pytest.raises(BackendError, match=r"model failed on this batch: IndexError") as caught:
            await complete(backend, [77, 77, 78], max_tokens=2)
        assert isinstance(caught.value.__cause__, IndexError)
        return await decoding, await complete(backend, [5, 6], max_tokens=4)

    first, second = served(folder, use)
    assert len(first.ids) == 200
    assert len(second.ids) == 4


def test_a_decoding_step_that_fails_ends_its_rows_and_the_engine_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([torch.OutOfMemoryError("no memory")])
    decode = Decoder.decode

    def failing(self, *args):
        for failure in failures:
            raise failure
        return decode(self, *args)

    async def use(backend: TorchBackend) -> Chunk:
        monkeypatch.setattr(Decoder, "decode", failing)
        for result in await asyncio.gather(*(complete(backend, [1, 2]) for _ in range(3)), return_exceptions=True):
            with pytest.raises(BackendError, match="OutOfMemoryError: no memory"):
                raise result
        return await complete(backend, [1, 2], max_tokens=4)

    assert len(served(folder, use).ids) == 4


@pytest.mark.parametrize("group", [1, 3])
def test_memory_that_does_not_suffice_for_a_prompt_fails_who_asked_for_it(
    group: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a group that waits for one prompt; whoever decodes beside it goes on."""
    make = KVBlock.__init__

    def limited(self, layout, rows, capacity):
        if capacity > 128:
            raise torch.OutOfMemoryError(f"no memory for {capacity} tokens")
        make(self, layout, rows, capacity)

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        beside = asyncio.create_task(complete(backend, [1], max_tokens=100))
        await settled(lambda: backend.counters().tokens > 0)
        monkeypatch.setattr(KVBlock, "__init__", limited)
        for _ in range(2):
            asked = (complete(backend, [7] * 200, max_tokens=2) for _ in range(group))
            for result in await asyncio.gather(*asked, return_exceptions=True):
                with pytest.raises(BackendError, match="no memory for 224 tokens"):
                    raise result
        return await beside, await complete(backend, [7] * 20, max_tokens=4)

    first, second = served(folder, use)
    assert len(first.ids) == 100
    assert len(second.ids) == 4


def test_a_failure_outside_any_batch_ends_what_is_in_flight_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([RuntimeError("lost")])
    admit = Engine._admit

    def failing(self):
        for failure in failures:
            raise failure
        return admit(self)

    async def use(backend: TorchBackend) -> Chunk:
        monkeypatch.setattr(Engine, "_admit", failing)
        with pytest.raises(BackendError, match="step failed: RuntimeError: lost"):
            await complete(backend, [1, 2])
        return await complete(backend, [1, 2], max_tokens=4)

    assert len(served(folder, use).ids) == 4


def test_the_death_of_the_thread_is_told_to_all_who_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(BaseException):
        pass

    def dying(self):
        raise Gone("killed")

    async def use() -> None:
        backend = TorchBackend(BackendContext(folder, max_concurrency=2))
        await backend.start()
        tasks = [asyncio.create_task(complete(backend, [1], **LONG)) for _ in range(4)]
        await settled(lambda: backend.counters().tokens > 0)
        monkeypatch.setattr(Engine, "step", dying)
        async with asyncio.timeout(20):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in results] == ["the engine's thread died of Gone: killed"] * 4
        with pytest.raises(BackendError, match="died of Gone"):
            await complete(backend, [1])
        with pytest.raises(BackendError, match="died of Gone"):
            await backend.update_weights(None)
        monkeypatch.undo()
        await backend.start()
        assert len((await complete(backend, [1], max_tokens=3)).ids) == 3
        await backend.stop()

    asyncio.run(use())


def test_stop_ends_what_is_in_flight_and_may_be_called_twice(folder: Path) -> None:
    async def use() -> None:
        backend = TorchBackend(BackendContext(folder, max_concurrency=2))
        with pytest.raises(BackendError, match="not running"):
            await complete(backend, [1])
        first, second = await asyncio.gather(backend.start(), backend.start())
        assert first == second
        tasks = [asyncio.create_task(complete(backend, [1], **LONG)) for _ in range(4)]
        await settled(lambda: backend.counters().waiting == 2)
        await asyncio.gather(backend.stop(), backend.stop())
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            with pytest.raises(BackendError, match="was stopped"):
                raise result
        await backend.stop()
        with pytest.raises(BackendError, match="not running"):
            await complete(backend, [1])
        assert not any(thread.name == "agentrl-engine" for thread in threading.enumerate())

    asyncio.run(use())


def test_a_request_that_crosses_with_the_stop_is_answered_too(folder: Path) -> None:
    """It is sent after the engine was asked to stop and before it is over."""

    async def use(backend: TorchBackend) -> None:
        first = asyncio.create_task(complete(backend, [1], **LONG))
        await settled(lambda: backend.counters().tokens > 0)
        thread = backend._thread
        with held(backend):
            stopping = asyncio.create_task(backend.stop())
            await settled(lambda: thread._messages.qsize() == 1)
            backend._thread = thread
            last = asyncio.create_task(complete(backend, [2], **LONG))
            await settled(lambda: thread._messages.qsize() == 2)
        await stopping
        for task in (first, last):
            with pytest.raises(BackendError, match="was stopped"):
                await task

    served(folder, use)


def test_only_the_engines_own_thread_is_limited(folder: Path) -> None:
    def threads_of_a_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    async def use() -> None:
        before = torch.get_num_threads(), threads_of_a_new_thread()
        async with serving(folder, threads=1):
            assert (torch.get_num_threads(), threads_of_a_new_thread()) == before

    asyncio.run(use())
