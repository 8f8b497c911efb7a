"""What one request may ask for, what ends it, and what is refused without harm to others."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.inference import models
from tests.inference.torch_backends import chunks, complete, served, serving

from agentrl.errors import BackendError, ConfigError, PromptTooLong, UnsupportedSampling
from agentrl.inference.contract import BackendContext, Capabilities, Chunk
from agentrl.inference.engine.backend import TorchBackend
from agentrl.inference.engine.sampler import StopStrings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.saved(models.qwen3(), tmp_path_factory.mktemp("qwen3"))


def test_a_bad_request_fails_alone_and_says_why(folder: Path) -> None:
    bad = {
        "token id 320.*vocabulary has 320": ([1, 320], {}),
        "token id -1": ([-1], {}),
        "no token ids": ([], {}),
        "not integers": ([1.5], {}),
        "temperature=-1": ([1], {"temperature": -1}),
        "temperature=nan": ([1], {"temperature": float("nan")}),
        "top_p=0": ([1], {"top_p": 0}),
        "top_k=-2": ([1], {"top_k": -2}),
        "max_tokens=0": ([1], {"max_tokens": 0}),
        "top_logprobs=400": ([1], {"top_logprobs": 400}),
        "stop=": ([1], {"stop": ("",)}),
    }

    async def use(backend: TorchBackend) -> list[object]:
        good = [complete(backend, [1, 2], seed=1, max_tokens=20) for _ in range(2)]
        wrong = [complete(backend, ids, **sampling) for ids, sampling in bad.values()]
        return await asyncio.gather(good[0], *wrong, good[1], return_exceptions=True)

    first, *errors, last = served(folder, use)
    assert isinstance(first, Chunk)
    assert first == last
    for error, reason in zip(errors, bad, strict=True):
        with pytest.raises(BackendError, match=reason) as caught:
            raise error
        assert caught.value.fix
        assert isinstance(error, UnsupportedSampling) == ("=" in reason)


def test_a_prompt_that_does_not_fit_names_both_numbers(folder: Path) -> None:
    async def use(backend: TorchBackend) -> Chunk:
        with pytest.raises(PromptTooLong, match=r"256 tokens.*context of 256"):
            await complete(backend, [1] * 256)
        return await complete(backend, [1] * 255)

    chunk = served(folder, use)
    assert len(chunk.ids) == 1
    assert chunk.finish == "length"


def test_the_context_length_can_be_lowered_but_not_raised(folder: Path) -> None:
    async def use(backend: TorchBackend) -> Chunk:
        with pytest.raises(PromptTooLong, match=r"40 tokens.*context of 32"):
            await complete(backend, [1] * 40)
        return await complete(backend, [1] * 20)

    assert len(served(folder, use, context_length=32).ids) == 12
    with pytest.raises(BackendError, match="context_length=1000 is beyond the model's 256"):
        served(folder, use, context_length=1000)


def test_an_enormous_context_is_capped_and_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    async def use(backend: TorchBackend) -> Capabilities:
        await complete(backend, [1, 2, 3], max_tokens=2)
        return await backend.start()

    folder = models.saved(models.qwen3(context=10_000_000), tmp_path)
    assert served(folder, use, concurrency=512).context_length == 32768


def test_stop_ids_end_a_completion_with_the_id_itself(folder: Path) -> None:
    async def use(backend: TorchBackend) -> tuple[Chunk, Chunk]:
        free = await complete(backend, [1, 2], temperature=0, max_tokens=10)
        stopped = await complete(backend, [1, 2], temperature=0, max_tokens=10, stop_ids=frozenset({free.ids[4], 999}))
        return free, stopped

    free, stopped = served(folder, use)
    assert stopped.ids == free.ids[: free.ids.index(free.ids[4]) + 1]
    assert (free.finish, stopped.finish, stopped.stop_string) == ("length", "stop", None)


TEXT = "say: the answer is 4 € = vier, the end"


@pytest.mark.parametrize(
    ("stop", "found"),
    [
        (("answer is",), "answer is"),
        (("wer i",), "wer i"),
        (("€",), "€"),
        (("€=v", "nothing"), "€=v"),
        (("end", "e answ", "answer"), "e answ"),
        (("nothing",), None),
    ],
)
def test_a_stop_string_ends_a_completion_wherever_tokens_split_it(
    stop: tuple[str, ...], found: str | None, tmp_path: Path
) -> None:
    """The euro sign is three tokens, "answer" is one, and each id occurs once in what the model follows."""
    tokenizer = models.tokenizer()
    ids = _without_repeats(tokenizer.encode(TEXT))
    text = tokenizer.decode(ids)
    folder = models.saved(models.scripted(ids), tmp_path)

    async def use(backend: TorchBackend) -> Chunk:
        return await complete(backend, ids[:1], temperature=0, max_tokens=len(ids) - 1, stop=stop)

    chunk = served(folder, use)
    assert list(chunk.ids) == ids[1 : len(chunk.ids) + 1]
    assert chunk.stop_string == found
    assert chunk.finish == ("stop" if found else "length")
    if found:
        assert found in text
        assert found in tokenizer.decode(chunk.ids)
        assert found not in tokenizer.decode(chunk.ids[:-1])


def _without_repeats(ids: list[int]) -> list[int]:
    return list(dict.fromkeys(ids))


def test_a_stop_string_in_the_prompt_does_not_count(tmp_path: Path) -> None:
    tokenizer = models.tokenizer()
    ids = _without_repeats(tokenizer.encode("abcdefgh"))
    folder = models.saved(models.scripted(ids), tmp_path)

    async def use(backend: TorchBackend) -> Chunk:
        return await complete(backend, ids[:3], temperature=0, max_tokens=3, stop=("bc", "cd"))

    assert served(folder, use).finish == "length"


def test_a_stop_string_may_name_a_special_token() -> None:
    tokenizer = models.tokenizer()
    ids = [*tokenizer.encode("the end"), tokenizer.eos_token_id]
    stops = StopStrings(tokenizer, ("<|im_end|>",))
    assert [stops.found(ids[:count]) for count in range(1, len(ids) + 1)] == [None] * (len(ids) - 1) + ["<|im_end|>"]


def test_without_a_tokenizer_stop_strings_are_refused_and_not_claimed(tmp_path: Path) -> None:
    folder = models.saved(models.qwen3(), tmp_path, with_tokenizer=False)

    async def use(backend: TorchBackend) -> Capabilities:
        with pytest.raises(UnsupportedSampling, match="tokenizer"):
            await complete(backend, [1], stop=("x",))
        return await backend.start()

    assert "stop" not in served(folder, use).sampling
    assert "stop" in Capabilities(1, 1).sampling


def test_settings_are_checked_with_the_key_in_the_message(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"inference\.backend\.max_batch_token=5.*did you mean 'max_batch_tokens'"):
        TorchBackend(BackendContext(folder, options={"max_batch_token": 5}))
    with pytest.raises(ConfigError, match=r"inference\.backend\.threads=0.*CPU threads"):
        TorchBackend(BackendContext(folder, options={"threads": 0}))


@pytest.mark.parametrize(
    ("option", "reason"),
    [("tpuu", "is no device"), ("cuda:99", "torch (sees [0-9]+|finds no) CUDA"), ("meta", "runs on CPU and CUDA")],
)
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(option: str, reason: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"inference.backend.device='{option}'.*{reason}"):
        TorchBackend(BackendContext(folder, options={"device": option}))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"loads from {tmp_path}"):
        asyncio.run(_start(tmp_path))


def test_a_lower_precision_is_honoured(folder: Path) -> None:
    async def use(backend: TorchBackend) -> list[Chunk]:
        return await chunks(backend, [1, 2, 3], stream=True, max_tokens=3)

    assert served(folder, use, dtype="bfloat16")[-1].finish == "length"
    low = served(folder, use, dtype="bfloat16")[0].logprobs[0]
    high = served(folder, use, dtype="float32")[0].logprobs[0]
    assert 0 < abs(low - high) < 0.3


def test_the_first_chunk_alone_tells_when_the_first_token_was_sampled(folder: Path) -> None:
    async def use(backend: TorchBackend) -> tuple[float, list[Chunk], list[Chunk], float]:
        before = time.monotonic()
        streamed = await chunks(backend, [1, 2, 3], stream=True, max_tokens=3)
        return before, streamed, await chunks(backend, [1, 2, 3], max_tokens=3), time.monotonic()

    before, streamed, whole, after = served(folder, use)
    assert [chunk.first_token is None for chunk in streamed] == [False, True, True]
    times = [before, streamed[0].first_token, whole[0].first_token, after]
    assert times == sorted(times)


async def _start(folder: Path, **options: object) -> None:
    async with serving(folder, **options):
        pass
