"""The scripted backend plays what it is given, as an engine would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agentrl.errors import BackendError, PromptTooLong
from agentrl.inference.contract import Chunk, GenerationRequest, Sampling
from agentrl.testing import Hangs, ScriptedBackend, Truncated

pytest_plugins = ["agentrl.testing"]

PROMPT = [40, 41]


async def chunks(
    backend: ScriptedBackend, session: str | None = None, *, prompt: Sequence[int] = PROMPT, **sampling: Any
) -> list[Chunk]:
    request = GenerationRequest(prompt, Sampling(**sampling), session=session)
    async with asyncio.timeout(10):
        return [chunk async for chunk in backend.generate(request)]


def played(backend: ScriptedBackend, session: str | None = None, **sampling: Any) -> Chunk:
    (chunk,) = asyncio.run(chunks(backend, session, **sampling))
    return chunk


def text(backend: ScriptedBackend, chunk: Chunk) -> str:
    return backend.renderer.vocabulary.decode(chunk.ids)


def test_every_session_has_the_script_from_its_beginning_and_the_last_completion_again() -> None:
    backend = ScriptedBackend(["one", "two"])
    told = [text(backend, played(backend, session)) for session in ("a", "b", "a", "a")]
    assert told == ["one<|im_end|>", "one<|im_end|>", "two<|im_end|>", "two<|im_end|>"]
    assert [request.session for request in backend.requests] == ["a", "b", "a", "a"]
    assert (backend.running, backend.cancelled) == (0, 0)


def test_a_function_of_the_prompt_says_what_comes() -> None:
    backend = ScriptedBackend(lambda prompt: prompt.upper())

    async def later(prompt: str) -> str:
        await asyncio.sleep(0)
        return prompt + "!"

    prompt = backend.renderer.vocabulary.encode("hello")
    assert text(backend, played(backend, prompt=prompt)) == "HELLO<|im_end|>"
    backend.play(later)
    assert text(backend, played(backend, prompt=prompt)) == "hello!<|im_end|>"


def test_tokens_have_a_logprob_the_version_and_alternatives() -> None:
    backend = ScriptedBackend(["It is 42."], version=3)
    chunk = played(backend, top_logprobs=2)
    assert len(chunk.ids) == len(chunk.logprobs) == len(chunk.top_logprobs)
    assert all(-1 < logprob < 0 for logprob in chunk.logprobs)
    assert set(chunk.versions) == {3}
    for token, logprob, tops in zip(chunk.ids, chunk.logprobs, chunk.top_logprobs, strict=True):
        assert tops[0] == (token, logprob)
        assert tops[1][1] < logprob


@pytest.mark.parametrize(
    ("completion", "sampling", "ends"),
    [
        (Truncated("It is"), {}, ("It is", "length", None)),
        ("It is 42.", {"max_tokens": 3}, ("It is ", "length", None)),
        ("a<|im_end|>b", {"stop_ids": frozenset({540})}, ("a<|im_end|>", "stop", None)),
        ("one, two", {"stop": ("two", ",")}, ("one,", "stop", ",")),
    ],
)
def test_a_completion_ends_where_the_request_would_have_ended_it(
    completion: object, sampling: dict[str, Any], ends: tuple[object, ...]
) -> None:
    backend = ScriptedBackend([completion])
    chunk = played(backend, **sampling)
    assert (text(backend, chunk), chunk.finish, chunk.stop_string) == ends


def test_raw_ids_are_played_as_they_are() -> None:
    assert played(ScriptedBackend([[127, 102]])).ids == (127, 102)


def test_a_stream_is_a_token_a_chunk() -> None:
    backend = ScriptedBackend(["abc"])

    async def streamed() -> list[Chunk]:
        request = GenerationRequest(PROMPT, Sampling(), stream=True)
        return [chunk async for chunk in backend.generate(request)]

    parts = asyncio.run(streamed())
    assert [part.finish for part in parts] == [None] * 3 + ["stop"]
    assert tuple(token for part in parts for token in part.ids) == played(backend).ids


def test_errors_of_the_script_and_prompts_too_long_are_raised() -> None:
    with pytest.raises(BackendError, match="lost the device"):
        played(ScriptedBackend([BackendError("lost the device")]))
    with pytest.raises(PromptTooLong, match="2 tokens"):
        played(ScriptedBackend([""], context_length=2))


def test_a_completion_that_hangs_ends_with_its_reader_or_with_the_backend() -> None:
    backend = ScriptedBackend([Hangs()])

    async def scenario() -> None:
        await backend.start()
        given_up, waiting = (asyncio.ensure_future(chunks(backend)) for _ in range(2))
        while backend.running < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert (backend.running, backend.cancelled) == (1, 1)
        await backend.stop()
        await backend.stop()
        with pytest.raises(BackendError, match="stopped"):
            await waiting

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_script_without_completions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one completion"):
        ScriptedBackend([])


def test_the_fixture_plays_an_episode(play: Any, scripted: Any) -> None:
    task = {"question": "What is 40 + 2?", "answer": "42"}
    assert play("math", task, "It is 42.").reward == 1
    assert play("multi_turn_math", task, "24", "42", kwargs={"max_turns": 2}).reward == 0.5
    assert text(scripted("a"), played(scripted("a"))) == "a<|im_end|>"
