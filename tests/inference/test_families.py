"""The lean forward computes what each family's own forward does, and says where it does not serve a model."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from tests.inference import models
from tests.inference.families import FAMILY_MODELS, family_model
from tests.inference.torch_backends import complete, off_by, plain_greedy, served
from transformers import PreTrainedModel

from agentrl.errors import BackendError
from agentrl.inference.contract import BackendContext, Capabilities, Chunk
from agentrl.inference.engine import loading
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.fused import FusedNetwork
from agentrl.inference.families import FAMILIES, Undescribed, describe

EXACT = 1e-5


def test_every_family_is_held_to_its_own_forward() -> None:
    assert {kind for kind, _ in FAMILY_MODELS.values()} == FAMILIES


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_a_family_samples_what_its_own_forward_says(name: str, tmp_path: Path) -> None:
    """Prompts side by side and in pieces, rows of several lengths, the next turn over what is cached."""
    model, generator = family_model(name), random.Random(0)
    prompts = [[generator.randrange(models.VOCABULARY) for _ in range(length)] for length in (1, 7, 19, 33)]

    async def use(backend: TorchBackend) -> tuple[Capabilities, list[Chunk], Chunk]:
        first = await asyncio.gather(*(complete(backend, ids, temperature=0, max_tokens=9) for ids in prompts))
        longer = [*prompts[2], *first[2].ids, 5, 6]
        return await backend.start(), first, await complete(backend, longer, temperature=0, max_tokens=9)

    folder = models.saved(model, tmp_path, with_tokenizer=False)
    options = {"device": "cpu", "reproducible": False, "max_batch_tokens": 24}
    capabilities, first, second = served(folder, use, **options)
    assert capabilities.notes == (), "it runs by the lean forward"
    for prompt, chunk in zip([*prompts, [*prompts[2], *first[2].ids, 5, 6]], [*first, second], strict=True):
        assert chunk.ids == plain_greedy(model, prompt, 9)
        assert off_by(model, prompt, chunk) < EXACT


def _doubled_head(model: PreTrainedModel) -> None:
    model.lm_head = torch.nn.Sequential(model.lm_head)


def _strange_part(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.gate = torch.nn.Linear(2, 2)


def _half_biased(model: PreTrainedModel) -> None:
    model.model.layers[0].self_attn.k_proj.bias = None


def _strange_norm(model: PreTrainedModel) -> None:
    model.model.norm = torch.nn.Softmax(-1)


def _dynamic_rotations(model: PreTrainedModel) -> None:
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_doubled_head, "its lm_head is Sequential, not Linear"),
        (_strange_part, "attention has gate, which is not known here"),
        (_half_biased, "only some of q_proj, k_proj, v_proj have a bias"),
        (_strange_norm, "Softmax is no normalisation that is known"),
        (_dynamic_rotations, "its rotations are dynamic"),
    ],
)
def test_what_no_feature_stands_for_is_refused(change, reason: str) -> None:
    model = models.qwen2()
    change(model)
    with pytest.raises(Undescribed, match=reason):
        describe(model)


def test_a_model_of_no_known_family_runs_plain_and_says_so(tmp_path: Path) -> None:
    async def use(backend: TorchBackend) -> Capabilities:
        return await backend.start()

    (note,) = served(models.saved(models.gpt2(), tmp_path), use).notes
    assert note.startswith(
        "the engine runs GPT2LMHeadModel by transformers' own forward, which is slower: gpt2 is none of the families "
    )


def test_capped_scores_have_no_reproducible_kernel() -> None:
    with pytest.raises(BackendError, match="its attention caps its scores"):
        FusedNetwork(family_model("gemma2-caps"), reproducible=True)


@pytest.mark.parametrize(
    ("dtype", "precision", "units", "expected"),
    [
        ("auto", "auto", True, torch.float32),
        ("auto", "bfloat16", True, torch.bfloat16),
        ("auto", "bfloat16", False, torch.float32),
        ("bfloat16", "float32", False, torch.bfloat16),
        ("float32", "bfloat16", True, torch.float32),
    ],
)
def test_the_type_follows_the_learner_where_the_processor_has_units_for_it(
    dtype: str, precision: str, units: bool, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "has_bfloat16_units", lambda: units)
    context = BackendContext(
        models.saved(models.qwen3(), tmp_path), precision=precision, options={"dtype": dtype, "device": "cpu"}
    )

    async def held() -> set[str]:
        backend = TorchBackend(context)
        await backend.start()
        tensors = (await backend.held_weights()).tensors
        await backend.stop()
        return {each.dtype for each in tensors.values()}

    assert asyncio.run(held()) == {str(expected).removeprefix("torch.")}


@pytest.mark.parametrize("name", ["gemma2-caps", "olmo3-windows", "phi3-window", "qwen3-windows"])
def test_in_bfloat16_a_family_stays_near_the_float32_forward(name: str, tmp_path: Path) -> None:
    model = family_model(name)

    async def use(backend: TorchBackend) -> tuple[Capabilities, Chunk]:
        return await backend.start(), await complete(backend, [5, 6, 7, 8], seed=1, max_tokens=20)

    capabilities, chunk = served(models.saved(model, tmp_path), use, device="cpu", dtype="bfloat16")
    assert capabilities.notes == ()
    assert not capabilities.reproducible
    assert off_by(model, [5, 6, 7, 8], chunk) < 0.15


def test_rounding_of_a_few_unlikely_tokens_is_no_wrong_forward(tmp_path: Path) -> None:
    model = models.qwen3()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)

    async def use(backend: TorchBackend) -> Capabilities:
        return await backend.start()

    folder = models.saved(model, tmp_path)
    assert served(folder, use, device="cpu", dtype="bfloat16").notes == ()


def test_a_wrong_forward_is_found_in_bfloat16_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedNetwork, "logits", lambda self, batch: torch.zeros(len(batch.ids_BQ), models.VOCABULARY))

    async def use(backend: TorchBackend) -> Capabilities:
        return await backend.start()

    (note,) = served(models.saved(models.qwen3(), tmp_path), use, device="cpu", dtype="bfloat16").notes
    assert "decoded row by row its logprobs are off by" in note
