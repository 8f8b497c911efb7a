"""What prompts share is computed once, and what is sampled from it does not change."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference import models
from tests.inference.torch_backends import complete, held, off_by, plain_greedy, served, settled

from agentrl.inference.contract import Chunk
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.cache import Ids, PrefixCache, Segment

PROMPT = list(range(40, 70))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(models.qwen3(), tmp_path_factory.mktemp("qwen3"))


async def _group(backend: TorchBackend, prompt: list[int], size: int, first_seed: int = 0) -> list[Chunk]:
    return await asyncio.gather(
        *(complete(backend, prompt, seed=first_seed + index, max_tokens=8) for index in range(size))
    )


def test_a_group_computes_its_prompt_once(folder: Path) -> None:
    async def use(backend: TorchBackend) -> tuple[int, int]:
        await _group(backend, PROMPT, 8)
        counters = backend.counters()
        return counters.prompt_tokens, counters.prefix_hit_tokens

    body = len(PROMPT) - 1
    assert served(folder, use) == (8 * body, 7 * body)
    assert served(folder, use, concurrency=2) == (8 * body, 7 * body), "also those that had to wait"


def test_the_next_turn_computes_only_what_is_new(folder: Path) -> None:
    model = models.qwen3().eval()

    async def use(backend: TorchBackend) -> tuple[list[int], Chunk, int]:
        first = await complete(backend, PROMPT, temperature=0, max_tokens=10)
        prompt = [*PROMPT, *first.ids, 7, 8, 9]
        before = backend.counters().prefix_hit_tokens
        second = await complete(backend, prompt, temperature=0, max_tokens=10)
        return prompt, second, backend.counters().prefix_hit_tokens - before

    prompt, second, hit = served(folder, use)
    # The last sampled token was never fed to the model, so its KV is not there.
    assert hit == len(prompt) - 3 - 1
    assert second.ids == plain_greedy(model, prompt, 10)
    assert off_by(model, prompt, second) < 1e-5


@pytest.mark.parametrize("build", [models.qwen3, models.sliding_qwen3, models.gemma3], ids=lambda build: build.__name__)
def test_reused_prefixes_give_the_same_ids_and_logprobs(build, tmp_path: Path) -> None:
    model = build().eval()
    branches = [PROMPT, [*PROMPT[:20], 1, 2], [*PROMPT, 3], PROMPT[:5] + [9] * 30, PROMPT[:1], PROMPT]

    async def use(backend: TorchBackend) -> list[Chunk]:
        return [await complete(backend, ids, temperature=0, max_tokens=12) for ids in branches]

    folder = models.saved(model, tmp_path)
    reused, computed = served(folder, use), served(folder, use, prefix_cache_tokens=0)
    for prompt, chunk, reference in zip(branches, reused, computed, strict=True):
        assert chunk.ids == reference.ids == plain_greedy(model, prompt, 12)
        assert chunk.logprobs == pytest.approx(reference.logprobs, abs=1e-5)


def test_prompts_computed_side_by_side_stay_within_the_models_positions(tmp_path: Path) -> None:
    """One of them goes on from a long prefix, and its neighbour's is longer than what is left of its 128 positions."""
    model = models.gpt2().eval()
    long, short = [index % 50 for index in range(100)], list(range(200, 245))

    async def use(backend: TorchBackend) -> list[Chunk]:
        await complete(backend, long, max_tokens=1)
        both = [asyncio.create_task(complete(backend, ids, max_tokens=5)) for ids in ([*long, *range(20)], short)]
        with held(backend):
            await settled(lambda: backend._thread._messages.qsize() == 2)
        return await asyncio.gather(*both)

    continued, fresh = served(models.saved(model, tmp_path), use)
    assert off_by(model, [*long, *range(20)], continued) < 1e-5
    assert off_by(model, short, fresh) < 1e-5


def test_without_a_cache_nothing_is_kept(folder: Path) -> None:
    async def use(backend: TorchBackend) -> int:
        await complete(backend, PROMPT, max_tokens=2)
        await complete(backend, PROMPT, max_tokens=2)
        return backend.counters().prefix_hit_tokens

    assert served(folder, use, prefix_cache_tokens=0) == 0
    assert served(folder, use, prefix_cache_tokens=16) == 0, "nor what is larger than the cache"
    assert served(folder, use) == len(PROMPT) - 1


def _kv(ids: Ids) -> Segment:
    """A stand-in for KV: each token's entry tells the whole sequence up to it."""
    history = [hash(tuple(ids[: end + 1].tolist())) % 1_000_003 for end in range(len(ids))]
    return (torch.tensor(history, dtype=torch.float64).view(1, 1, -1, 1),)


sequences = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), sequences), max_size=30), st.integers(0, 60))
def test_the_cache_returns_the_longest_prefix_it_holds_and_stays_in_its_bound(
    operations: list[tuple[bool, list[int]]], bound: int
) -> None:
    """With room for everything it knows every prefix of what it was given; with less, never a wrong one."""
    cache, roomy, inserted = PrefixCache(bound), PrefixCache(10_000), []
    for insert, sequence in operations:
        ids = np.array(sequence)
        if insert:
            cache.insert(ids, _kv(ids))
            roomy.insert(ids, _kv(ids))
            inserted.append(sequence)
        for tested in (cache, roomy):
            pieces = tested.match(ids)
            found = torch.cat([piece[0] for piece in pieces], dim=2) if pieces else torch.zeros(1, 1, 0, 1)
            assert torch.equal(found, _kv(ids)[0][:, :, : found.shape[2]])
        longest = max((_common(sequence, known) for known in inserted), default=0)
        assert found.shape[2] == longest
        assert cache.tokens <= bound
        assert roomy.tokens == len({tuple(known[:end]) for known in inserted for end in range(1, len(known) + 1)})


def _common(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    cache = PrefixCache(8)
    old, kept, new = (np.array(ids) for ids in ([1, 2, 3, 4], [5, 6, 7], [8, 9]))
    for ids in (old, kept):
        cache.insert(ids, _kv(ids))
    cache.match(old[:2])
    cache.insert(new, _kv(new))
    assert [len(cache.match(ids)) for ids in (old, kept, new)] == [1, 0, 1]


def _beginnings() -> list[list[int]]:
    """Prompts of which most begin alike: all with 100 tokens, some with 100 more, one with nothing beside that."""
    long = [(7 * index) % 300 for index in range(200)]
    own = [[index + 1] * (5 + index) for index in range(6)]
    return [
        *(long[:100] + each for each in own[:3]),
        *(long + each for each in own[3:]),
        [*long, 9],
        [9, 8, 7, 6],
        long[:101],
    ]


def _computed(backend: TorchBackend) -> int:
    counters = backend.counters()
    return counters.prompt_tokens - counters.prefix_hit_tokens


@pytest.mark.parametrize("options", [{}, {"prefix_cache_tokens": 0}, {"max_batch_tokens": 30}, {"concurrency": 3}])
def test_prompts_that_arrive_together_compute_a_common_beginning_once(options: dict, folder: Path) -> None:
    prompts = _beginnings()

    async def alone(backend: TorchBackend) -> list[Chunk]:
        return [await complete(backend, ids, seed=3, max_tokens=6) for ids in prompts]

    async def together(backend: TorchBackend) -> tuple[list[Chunk], int]:
        tasks = [asyncio.create_task(complete(backend, ids, seed=3, max_tokens=6)) for ids in prompts]
        with held(backend):
            await settled(lambda: backend._thread._messages.qsize() == len(prompts))
        return await asyncio.gather(*tasks), _computed(backend)

    common = {"device": "cpu", "reproducible": True}
    found, computed = served(folder, together, **({"concurrency": 16} | common | options))
    assert found == served(folder, alone, prefix_cache_tokens=0, **common), "the bits are those of each alone"
    if "concurrency" not in options:  # Else some begin when what they share is done, and found where it is kept.
        distinct = {tuple(ids[:end]) for ids in prompts for end in range(1, len(ids))}
        assert computed == len(distinct)


def test_a_prompt_that_arrives_while_its_beginning_is_computed_waits_for_it(folder: Path) -> None:
    first, second, within = (ids for ids in (_beginnings()[3], _beginnings()[4], _beginnings()[3][:150]))

    async def use(backend: TorchBackend) -> tuple[list[Chunk], int]:
        tasks = [asyncio.create_task(complete(backend, first, seed=1, max_tokens=3))]
        await settled(lambda: _under_way(backend))
        with held(backend):
            assert _under_way(backend), "it is still computed"
            tasks += [asyncio.create_task(complete(backend, ids, seed=1, max_tokens=3)) for ids in (second, within)]
            await settled(lambda: backend._thread._messages.qsize() == 2)
        return await asyncio.gather(*tasks), _computed(backend)

    def _under_way(backend: TorchBackend) -> bool:
        engine = backend._thread.ready.result()
        return any(0 < prefill._done < 80 for prefill in list(engine._prefills))

    found, computed = served(folder, use, max_batch_tokens=1, prefix_cache_tokens=0, device="cpu")
    assert computed == len(first) - 1 + len(second) - 1 - 200
    model = models.loaded(folder)
    for ids, chunk in zip((first, second, within), found, strict=True):
        assert off_by(model, ids, chunk) < 1e-5


def test_readers_that_leave_take_nothing_from_those_with_the_same_beginning(folder: Path) -> None:
    prompts = _beginnings()

    async def use(backend: TorchBackend) -> tuple[Chunk, bool]:
        tasks = [asyncio.create_task(complete(backend, ids, seed=1, max_tokens=3)) for ids in prompts]
        with held(backend):
            await settled(lambda: backend._thread._messages.qsize() == len(prompts))
        for task in (*tasks[:4], *tasks[5:]):
            task.cancel()
        chunk = await tasks[4]
        await settled(lambda: not backend._thread.ready.result().busy)
        return chunk, bool(backend._thread.ready.result()._pending)

    chunk, pending = served(folder, use, max_batch_tokens=1, concurrency=16, device="cpu")
    assert off_by(models.loaded(folder), prompts[4], chunk) < 1e-5
    assert not pending
