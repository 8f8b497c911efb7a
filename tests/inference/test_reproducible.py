"""With ``reproducible`` a token's log-probability has the same bits, whatever else the engine does beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from tests.inference import models
from tests.inference.families import FAMILY_MODELS, family_model
from tests.inference.reproducible import Plan, Request, answers, plans, requests_for
from tests.inference.torch_backends import serving

from agentrl.config.models import ModelSection
from agentrl.errors import BackendError, ConfigError
from agentrl.inference.contract import BackendContext
from agentrl.inference.engine import arithmetic, loading
from agentrl.inference.engine import fused as network
from agentrl.inference.engine.arithmetic import QuickArithmetic
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins

VOCABULARY = 547
REQUESTS = requests_for(VOCABULARY, count=14)
CALM = Plan()


@pytest.fixture(scope="module")
def tiny() -> Path:
    return find_model(Plugins(), ModelSection(name="tiny"))


@pytest.fixture(scope="module")
def alone(tiny: Path) -> list[tuple]:
    """What each request is answered where it is the only one."""
    return answers(tiny, REQUESTS, Plan(concurrency=1, prefix_cache_tokens=0))


@settings(deadline=None, max_examples=6)
@given(plan=plans(VOCABULARY, len(REQUESTS)))
def test_bits_do_not_depend_on_what_is_beside_before_or_around(tiny: Path, alone: list[tuple], plan: Plan) -> None:
    """Batch mates, order of arrival, cancelled neighbours, what the cache holds, pieces of prompts, room for KV."""
    found = answers(tiny, REQUESTS, plan)
    assert [index for index, answer in enumerate(found) if answer != alone[index]] == []


def test_without_it_they_do(tiny: Path, alone: list[tuple]) -> None:
    assert answers(tiny, REQUESTS, CALM) == alone
    assert answers(tiny, REQUESTS, CALM, reproducible=False) != alone


@pytest.mark.parametrize("name", sorted(FAMILY_MODELS.keys() - {"gemma2-caps"}))
def test_every_family_has_it(name: str, tmp_path: Path) -> None:
    """Small heads, biases, windows, norms, multipliers, activations, tied embeddings."""
    folder, asked = models.saved(family_model(name), tmp_path), requests_for(models.VOCABULARY, count=5, longest=60)
    expected = answers(folder, asked, Plan(concurrency=1, prefix_cache_tokens=0))
    mates = [Request((7,) * length, length, 8) for length in range(1, 20, 2)]
    for plan in (Plan(mates=mates), Plan(max_batch_tokens=9, kv_cache_tokens=256)):
        assert answers(folder, asked, plan) == expected


def test_the_engine_says_whether_it_has_it(tiny: Path, tmp_path: Path) -> None:
    gpt2 = models.saved(models.gpt2(), tmp_path)

    async def has(folder: Path, **options: object) -> bool:
        async with serving(folder, device="cpu", **options) as backend:
            return (await backend.start()).reproducible

    assert asyncio.run(has(tiny))
    assert asyncio.run(has(tiny, reproducible=True))
    assert not asyncio.run(has(tiny, reproducible=False))
    assert not asyncio.run(has(tiny, dtype="bfloat16"))
    assert not asyncio.run(has(gpt2)), "which runs by its own forward"
    with pytest.raises(BackendError, match=r"reproducible: .* GPT2LMHeadModel runs by its own forward"):
        asyncio.run(has(gpt2, reproducible=True))


@pytest.mark.parametrize(
    ("broken", "by", "reason"),
    [
        (arithmetic, {"_block_of": None}, r"with this machine's torch .*, a row's product"),
        (network, {"InvariantArithmetic": lambda *shapes: QuickArithmetic()}, r"alone, a row's logits are off by"),
    ],
    ids=["no shape is found", "what was found does not hold"],
)
def test_where_kernels_have_no_such_shapes_it_is_off_or_refused(
    broken: ModuleType, by: dict[str, Any], reason: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def varies(*product: object) -> int:
        raise arithmetic._varies("a row's product depends on the others")

    for name, replacement in by.items():
        monkeypatch.setattr(broken, name, replacement or varies)

    async def has(reproducible: bool | str) -> bool:
        async with serving(tiny, device="cpu", reproducible=reproducible) as backend:
            return (await backend.start()).reproducible

    assert not asyncio.run(has("auto"))
    with pytest.raises(BackendError, match=reason):
        asyncio.run(has(True))


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "cuda"}])
def test_elsewhere_it_is_refused(options: dict[str, str], tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"inference.backend.reproducible=true needs float32 on the CPU"):
        TorchBackend(BackendContext(tiny, options={"reproducible": True, **options}))


def test_it_is_refused_where_the_engine_follows_the_learner_to_bfloat16(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "has_bfloat16_units", lambda: True)
    with pytest.raises(ConfigError, match=r"the type bfloat16 \(.*dtype is auto, training.precision bfloat16\)"):
        TorchBackend(BackendContext(tiny, precision="bfloat16", options={"reproducible": True, "device": "cpu"}))
