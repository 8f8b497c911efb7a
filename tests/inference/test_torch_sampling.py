"""How tokens are drawn: each request by its own rules, whoever else is in the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference import models
from tests.inference.torch_backends import chunks, complete, plain_greedy, plain_logprobs, served, serving

from agentrl.inference.contract import Chunk
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.sampler import SamplingRules, sample, uniforms

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(models.qwen3(), tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def with_engine(folder: Path) -> Iterator[Callable[..., list[Chunk]]]:
    """Completes several requests at once on an engine that outlives the examples of a property."""
    with asyncio.Runner() as runner:
        context = serving(folder)
        backend = runner.run(context.__aenter__())

        async def all_of(requests: list[dict]) -> list[Chunk]:
            return await asyncio.gather(*(complete(backend, **request) for request in requests))

        yield lambda *requests: runner.run(all_of(list(requests)))
        runner.run(context.__aexit__(None, None, None))


mates = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, models.VOCABULARY - 1), min_size=1, max_size=60),
        "temperature": st.sampled_from([0, 0.3, 1.0, 1.7]),
        "seed": st.integers(-(2**70), 2**70),
        "max_tokens": st.integers(1, 30),
        "top_p": st.sampled_from([1.0, 0.6]),
        "top_k": st.sampled_from([0, 3]),
        "top_logprobs": st.integers(0, 2),
        "stop_ids": st.frozensets(st.integers(0, models.VOCABULARY - 1), max_size=3),
    }
)


@settings(max_examples=25, deadline=None)
@given(others=st.lists(mates, max_size=12), position=st.integers(0, 12))
def test_equal_prompt_and_seed_give_equal_tokens_whatever_the_batch(
    with_engine: Callable[..., list[Chunk]], others: list[dict], position: int
) -> None:
    request = {"prompt": PROMPT, "seed": 11, "max_tokens": 24}
    (alone,) = with_engine(request)
    among = with_engine(*others[:position], request, *others[position:])[min(position, len(others))]
    assert among.ids == alone.ids
    assert among.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_another_seed_gives_other_tokens(with_engine: Callable[..., list[Chunk]]) -> None:
    seeds = [0, 1, 2**64 - 1, -7]
    found = with_engine(*({"prompt": PROMPT, "seed": seed, "max_tokens": 12} for seed in seeds))
    assert len({chunk.ids for chunk in found}) == len(seeds)


def test_temperature_zero_is_greedy_also_as_an_integer_and_beside_others(folder: Path) -> None:
    async def use(backend: TorchBackend) -> list[Chunk]:
        asked = [0, 0.0, 1, 1.0, 1e-30]
        return await asyncio.gather(
            *(complete(backend, PROMPT, temperature=value, seed=3, max_tokens=10) for value in asked)
        )

    whole, real, one, unit, cold = served(folder, use)
    assert whole.ids == real.ids == cold.ids == plain_greedy(models.qwen3().eval(), PROMPT, 10)
    assert one == unit
    assert one.ids != whole.ids


@pytest.mark.parametrize(
    "rules", [{}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.7}, {"temperature": 1.3, "top_k": 40, "top_p": 0.8}]
)
def test_tokens_come_as_often_as_the_distribution_says(rules: dict, folder: Path) -> None:
    """Pearson's statistic of 4,000 draws stays within five standard deviations of its mean."""
    draws = 4000
    expected = _distribution(
        plain_logprobs(models.qwen3().eval(), PROMPT, [0], rules.get("temperature", 1.0))[0], rules
    )

    async def use(backend: TorchBackend) -> list[Chunk]:
        return await asyncio.gather(
            *(complete(backend, PROMPT, seed=seed, max_tokens=1, **rules) for seed in range(draws))
        )

    drawn = [chunk.ids[0] for chunk in served(folder, use, concurrency=256)]
    counts = torch.bincount(torch.tensor(drawn), minlength=models.VOCABULARY)
    assert counts[expected == 0].sum() == 0
    likely = expected * draws >= 5
    statistic = float(((counts - expected * draws) ** 2 / (expected * draws))[likely].sum())
    freedom = int(likely.sum()) - 1
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def _distribution(logprobs: torch.Tensor, rules: dict) -> torch.Tensor:
    """The cut and renormalised distribution, token by token as its definition reads."""
    order = logprobs.argsort(descending=True).tolist()[: rules.get("top_k") or None]
    mass = {token: float(logprobs[token].exp()) for token in order}
    total, before, kept = sum(mass.values()), 0.0, {}
    for token, share in mass.items():
        if before >= rules.get("top_p", 1.0) * total:
            break
        kept[token] = share
        before += share
    result = torch.zeros_like(logprobs)
    for token, share in kept.items():
        result[token] = share / sum(kept.values())
    return result


def test_streamed_chunks_join_to_the_completion_read_whole(folder: Path) -> None:
    async def use(backend: TorchBackend) -> tuple[list[Chunk], Chunk]:
        asked = {"seed": 4, "max_tokens": 15, "top_logprobs": 1}
        return await chunks(backend, PROMPT, stream=True, **asked), await complete(backend, PROMPT, **asked)

    parts, whole = served(folder, use)
    assert len(parts) > 1
    assert [part.finish for part in parts] == [None] * (len(parts) - 1) + ["length"]
    for name in ("ids", "logprobs", "versions", "top_logprobs"):
        assert sum((getattr(part, name) for part in parts), ()) == getattr(whole, name)


def _rules(rows: int, **given: float) -> SamplingRules:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "uniform": 0.5} | given
    columns = {name: np.full(rows, value, np.int64 if name == "top_k" else float) for name, value in values.items()}
    return SamplingRules.of(**columns, top_logprobs=0, device=torch.device("cpu"))


@given(
    uniform=st.floats(0, 1, exclude_max=True),
    vocabulary=st.sampled_from([1, 2, 129, 1000, 151_936]),
    blocked=st.floats(0, 0.999),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_a_token_of_no_probability_is_never_drawn(uniform: float, vocabulary: int, blocked: float, seed: int) -> None:
    """Also at the ends of the unit interval and in a vocabulary whose sums do not reach one exactly."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, vocabulary, generator=generator) * 5
    out = torch.rand(2, vocabulary, generator=generator) < blocked
    out[:, torch.randint(vocabulary, (), generator=generator)] = False
    for value in (uniform, 0.0, 1 - 2**-53):
        draw = sample(logits.masked_fill(out, float("-inf")), _rules(2, uniform=value))
        assert not any(out[row, token] for row, token in enumerate(draw.ids))
        assert all(np.isfinite(draw.logprobs))


def test_draws_of_a_large_vocabulary_invert_its_cumulative_sum() -> None:
    logits = torch.randn(3, 151_936, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edges = logits.softmax(-1).cumsum(-1)
    for value in np.linspace(0.0005, 0.9995, 41):
        draw = sample(logits.float(), _rules(3, uniform=value))
        for row, token in enumerate(draw.ids):
            assert edges[row, token] >= value - 1e-5
            assert token == 0 or edges[row, token - 1] <= value + 1e-5


def test_uniform_numbers_are_uniform_over_seeds_and_over_positions() -> None:
    """Kolmogorov's distance of 20,000 numbers, along either counter, stays under its 1e-6 quantile."""
    many, zero = np.arange(20_000), np.zeros(20_000)
    for seeds, positions in ((many, zero), (zero, many), (many, many)):
        numbers = np.sort(uniforms(seeds.astype(np.uint64), positions.astype(np.int64)))
        assert numbers[0] >= 0
        assert numbers[-1] < 1
        assert np.abs(numbers - (many + 0.5) / len(many)).max() < 2.7 / len(many) ** 0.5
