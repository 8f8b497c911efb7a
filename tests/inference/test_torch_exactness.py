"""What the torch engine samples is what the model's plain forward says, whatever else is in the batch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.inference import models
from tests.inference.torch_backends import complete, off_by, plain_greedy, plain_logprobs, served, serving
from transformers import PreTrainedModel

from agentrl.errors import BackendError
from agentrl.inference.contract import Capabilities, Chunk
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.fused import FusedNetwork
from agentrl.inference.engine.model import Decoder

EXACT = 1e-5

Build = Callable[[], PreTrainedModel]
ARCHITECTURES = [
    models.qwen3,
    models.sliding_qwen3,
    models.llama,
    models.qwen2,
    models.mistral,
    models.gemma3,
    models.gpt2,
    models.deepseek3,
    models.phi3_long,
]


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    generator = random.Random(0)
    return [
        [generator.randrange(models.VOCABULARY) for _ in range(generator.randint(1, longest))] for _ in range(count)
    ]


@pytest.mark.parametrize("build", ARCHITECTURES, ids=lambda build: build.__name__)
def test_greedy_completions_are_those_of_a_plain_forward(build: Build, tmp_path: Path) -> None:
    """Ragged rows, more requests than rows, and windows shorter than what is attended to."""
    model = build().eval()
    given = prompts(6)

    async def use(backend: TorchBackend) -> list[Chunk]:
        return await asyncio.gather(*(complete(backend, ids, temperature=0, max_tokens=12) for ids in given))

    for prompt, chunk in zip(given, served(models.saved(model, tmp_path), use, concurrency=4), strict=True):
        assert chunk.ids == plain_greedy(model, prompt, 12)
        assert off_by(model, prompt, chunk) < EXACT
        assert chunk.finish == "length"


def test_requests_that_arrive_while_others_decode_change_nothing(tmp_path: Path) -> None:
    model = models.qwen3().eval()
    given = prompts(24)

    async def late(backend: TorchBackend, ids: list[int], delay: float) -> Chunk:
        await asyncio.sleep(delay)
        return await complete(backend, ids, temperature=0.7, seed=len(ids), max_tokens=5 + len(ids))

    async def use(backend: TorchBackend) -> list[Chunk]:
        return await asyncio.gather(*(late(backend, ids, 0.004 * index) for index, ids in enumerate(given)))

    for prompt, chunk in zip(given, served(models.saved(model, tmp_path), use, concurrency=5), strict=True):
        assert len(chunk.ids) == 5 + len(prompt)
        assert off_by(model, prompt, chunk, temperature=0.7) < EXACT


def test_a_prompt_computed_in_pieces_is_the_same_prompt(tmp_path: Path) -> None:
    model = models.sliding_qwen3().eval()
    given = prompts(5, longest=150)

    async def use(backend: TorchBackend) -> list[Chunk]:
        return await asyncio.gather(*(complete(backend, ids, max_tokens=6) for ids in given))

    for prompt, chunk in zip(given, served(models.saved(model, tmp_path), use, max_batch_tokens=16), strict=True):
        assert off_by(model, prompt, chunk) < EXACT


def test_a_cache_too_small_for_all_makes_some_wait_and_changes_nothing(tmp_path: Path) -> None:
    """Rows grow beyond the bound while they decode: the youngest gives way, and goes on where it was."""
    model = models.qwen3().eval()
    given = prompts(6)

    async def use(backend: TorchBackend) -> list[Chunk]:
        return await asyncio.gather(
            *(complete(backend, ids, seed=index, max_tokens=100) for index, ids in enumerate(given))
        )

    folder = models.saved(model, tmp_path)
    small = served(folder, use, kv_cache_tokens=256, prefix_cache_tokens=0)
    large = served(folder, use)
    assert [chunk.ids for chunk in small] == [chunk.ids for chunk in large]
    assert all(off_by(model, prompt, chunk) < EXACT for prompt, chunk in zip(given, small, strict=True))


@pytest.mark.parametrize("temperature", [1, 0.7, 2.5])
def test_logprobs_are_of_the_distribution_after_temperature(temperature: float, tmp_path: Path) -> None:
    model = models.qwen3().eval()

    async def use(backend: TorchBackend) -> Chunk:
        return await complete(backend, [1, 2, 3], temperature=temperature, top_p=0.5, top_k=20, max_tokens=20)

    assert off_by(model, [1, 2, 3], served(models.saved(model, tmp_path), use), temperature) < EXACT


def test_alternatives_are_the_likeliest_tokens_of_each_position(tmp_path: Path) -> None:
    model = models.qwen3().eval()

    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk, Chunk]:
        return await asyncio.gather(
            complete(backend, [1, 2, 3], temperature=0, max_tokens=8, top_logprobs=5),
            complete(backend, [1, 2, 3], temperature=0.5, max_tokens=8, top_logprobs=2),
            complete(backend, [1, 2, 3], temperature=0, max_tokens=8),
        )

    five, two, none = served(models.saved(model, tmp_path), use)
    for chunk, count, temperature in ((five, 5, 1.0), (two, 2, 0.5)):
        expected = plain_logprobs(model, [1, 2, 3], chunk.ids, temperature).topk(count)
        assert [[token for token, _ in row] for row in chunk.top_logprobs] == expected.indices.tolist()
        values = torch.tensor([[logprob for _, logprob in row] for row in chunk.top_logprobs])
        assert (values - expected.values).abs().max() < EXACT
    assert none.top_logprobs == ()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (models.qwen3_next, r"Qwen3NextForCausalLM: it has layers of type linear_attention"),
        (models.bloom, r"BloomForCausalLM: it counts positions itself \(ALiBi does\)"),
        (models.mpt, r"MptForCausalLM: it counts positions itself \(ALiBi does\)"),
        (models.falcon_with_alibi, r"FalconForCausalLM: it counts positions itself \(ALiBi does\)"),
    ],
)
def test_a_model_that_cannot_be_decoded_by_rows_is_refused(build: Build, reason: str, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=reason):
        asyncio.run(_capabilities(tmp_path))


def test_a_forward_that_is_not_the_models_own_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its windows the decoder sees more than the model does."""
    monkeypatch.setattr(Decoder, "_layer_windows", lambda self: {"sliding_attention": None, "full_attention": None})
    with pytest.raises(BackendError, match=r"Gemma3ForCausalLM: decoded row by row its logprobs are off by"):
        asyncio.run(_capabilities(models.saved(models.gemma3(), tmp_path)))


def test_a_quicker_forward_that_is_not_exact_gives_way_to_the_models_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.gemma3().eval()
    monkeypatch.setattr(FusedNetwork, "logits", lambda self, batch: torch.zeros(len(batch.ids_BQ), models.VOCABULARY))

    async def use(backend: TorchBackend) -> tuple[Chunk, Capabilities]:
        return await complete(backend, [1, 2, 3], max_tokens=5), await backend.start()

    chunk, capabilities = served(models.saved(model, tmp_path), use, device="cpu")
    assert off_by(model, [1, 2, 3], chunk) < EXACT
    (note,) = capabilities.notes
    assert note.startswith(
        "the engine runs Gemma3ForCausalLM by transformers' own forward, which is slower: decoded row"
    )


def test_rotations_that_depend_on_the_longest_row_bound_the_context(tmp_path: Path) -> None:
    assert asyncio.run(_capabilities(models.saved(models.phi3_long(), tmp_path))).context_length == 64


async def _capabilities(folder: Path) -> Capabilities:
    async with serving(folder) as backend:
        return await backend.start()
