"""Tests of requests: what they may ask for, what ends them, and what is refused without harm to others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import pytest

from agentrl.errors import BackendError, PromptTooLong, UnsupportedSampling
from agentrl.inference.contract import Chunk, Grammar
from agentrl.testing.backends.bench import BackendSuite, Bench, ask, needs, read

__all__ = ["Requests"]

_ROUNDS = 20
"""How often all slots are filled and given up: sampling all of it to the end would take longer than a test may."""

_UNUSUAL: Mapping[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "seed": 7,
    "stop": ("x",),
    "top_logprobs": 2,
    "grammar": Grammar("regex", "[0-9]"),
    "logit_bias": ((1, 2.0),),
}
"""A value of each field that a backend may not honour."""


class Requests(BackendSuite):
    """Tests of single requests, and of many at once."""

    def test_max_tokens_ends_a_completion(self, bench: Bench) -> None:
        for chunk in bench.complete(*(ask(prompt, max_tokens=12) for prompt in bench.prompts())):
            assert len(chunk.ids) == 12, f"max_tokens=12 and no stop ids gave {len(chunk.ids)} tokens: {_end(chunk)}"
            assert chunk.finish == "length", f"max_tokens ended a completion: {_end(chunk)}"

    def test_the_end_of_the_context_ends_a_completion(self, bench: Bench) -> None:
        (chunk,) = bench.complete(ask(_long(bench, bench.capabilities.context_length - 5)))
        assert len(chunk.ids) == 5, f"5 tokens below the context's end it sampled {len(chunk.ids)}: {_end(chunk)}"
        assert chunk.finish == "length", f"the end of the context ended a completion: {_end(chunk)}"

    def test_a_stop_id_ends_a_completion_as_its_last_token(self, bench: Bench) -> None:
        prompt, free = bench.prompts(1)[0], self._greedy(bench)
        end = free.ids[4]
        (chunk,) = bench.complete(ask(prompt, temperature=0, max_tokens=12, stop_ids=frozenset({end})))
        expected = free.ids[: free.ids.index(end) + 1]
        assert chunk.ids == expected, f"stopped by the id {end} it gave {chunk.ids}, and should have given {expected}"
        assert chunk.finish == "stop", f"a stop id ended a completion: {_end(chunk)}"
        assert chunk.stop_string is None, f"a stop id ended a completion: {_end(chunk)}"

    def test_a_stop_string_ends_a_completion_that_holds_it(self, bench: Bench) -> None:
        needs(bench, "stop")
        prompt, free = bench.prompts(1)[0], self._greedy(bench)
        decode = bench.renderer.vocabulary.decode
        stop = decode(free.ids)[2:5]
        (chunk,) = bench.complete(ask(prompt, temperature=0, max_tokens=12, stop=(stop, "no such text")))
        assert chunk.finish == "stop", f"the stop string {stop!r} came up, and the completion ended by {_end(chunk)}"
        assert chunk.stop_string == stop, f"the stop string {stop!r} ended a completion: {_end(chunk)}"
        assert stop in decode(chunk.ids), "the ids do not hold the stop string"
        assert stop not in decode(chunk.ids[:-1]), "it went on beyond the stop string"
        assert chunk.ids == free.ids[: len(chunk.ids)], "before a stop string the tokens are others than without one"

    def test_streamed_chunks_join_to_the_completion_read_whole(self, bench: Bench) -> None:
        prompt = bench.prompts(1)[0]
        whole, streamed = (
            bench.complete(ask(prompt, temperature=0, max_tokens=12, stream=stream))[0] for stream in (False, True)
        )
        assert streamed.ids == whole.ids, "a stream gives other tokens than the same completion read whole"
        assert streamed.finish == whole.finish, f"a stream ended by {_end(streamed)}, read whole by {_end(whole)}"

    def test_a_stream_comes_in_parts(self, bench: Bench) -> None:
        async def parts() -> list[Chunk]:
            async with aclosing(bench.backend.generate(ask(bench.prompts(1)[0], max_tokens=64, stream=True))) as stream:
                return [chunk async for chunk in stream]

        assert len(bench.run(parts())) > 1, "64 tokens that are read as they come arrived in one chunk"

    def test_equal_seeds_give_equal_tokens_whatever_else_is_in_the_batch(self, bench: Bench) -> None:
        needs(bench, "seed")
        prompts = bench.prompts()
        prompt, request = prompts[0], ask(prompts[0], seed=5, max_tokens=16)
        (alone,) = bench.complete(request)
        mates = [ask(mate, seed=number, max_tokens=8 + number) for number, mate in enumerate(prompts)]
        *_, among = bench.complete(*mates, request)
        assert among.ids == alone.ids, "beside other requests the same prompt and seed gave other tokens"
        others = bench.complete(*(ask(prompt, seed=seed, max_tokens=16) for seed in range(16)))
        assert len({chunk.ids for chunk in others}) > 1, "16 seeds gave the same tokens"

    def test_a_prompt_that_fills_the_context_is_refused_before_its_first_token(self, bench: Bench) -> None:
        async def first(tokens: int) -> object:
            async with aclosing(bench.backend.generate(ask(_long(bench, tokens), stream=True))) as stream:
                try:
                    return await anext(stream)
                except BackendError as error:
                    return error

        for tokens in (bench.capabilities.context_length, 2 * bench.capabilities.context_length):
            ended = bench.run(first(tokens))
            told = f"a prompt of {tokens} tokens gave {ended!r:.200}"
            assert isinstance(ended, PromptTooLong), f"{told}: raise PromptTooLong"

    @pytest.mark.parametrize("field", _UNUSUAL)
    def test_a_field_that_it_does_not_honour_is_refused(self, field: str, bench: Bench) -> None:
        if field in bench.capabilities.sampling:
            pytest.skip(f"the backend honours {field!r}")
        (ended,) = bench.outcomes(ask(bench.prompts(1)[0], max_tokens=2, **{field: _UNUSUAL[field]}))
        told = f"{field}={_UNUSUAL[field]!r} is not among its capabilities, and gave {ended!r:.200}"
        assert isinstance(ended, UnsupportedSampling), f"{told}: raise UnsupportedSampling"

    def test_a_temperature_that_it_does_not_honour_is_refused(self, bench: Bench) -> None:
        least, most = bench.capabilities.temperatures
        beyond = [value for value in (least / 2, most * 2) if not bench.capabilities.honours_temperature(value)]
        if not beyond:
            pytest.skip("the backend honours every temperature")
        prompt = bench.prompts(1)[0]
        for value in beyond:
            (ended,) = bench.outcomes(ask(prompt, max_tokens=2, temperature=value))
            told = f"temperature={value:g} is beyond capabilities.temperatures, and gave {ended!r:.200}"
            assert isinstance(ended, UnsupportedSampling), f"{told}: raise UnsupportedSampling"

    def test_the_error_of_one_request_harms_no_other(self, bench: Bench) -> None:
        prompt, *others = bench.prompts()
        bad = [
            ask(_long(bench, bench.capabilities.context_length)),
            ask([*prompt, bench.vocabulary + 5]),
        ]
        good = [ask(other, temperature=0, max_tokens=12) for other in others]
        alone = bench.complete(*good)
        *ended, last = bench.outcomes(*bad, *good, good[0])
        for request, error in zip(bad, ended, strict=False):
            assert isinstance(error, BackendError), f"for {request!r:.100} it gave {error!r:.200}, not a BackendError"
        for chunk, expected in zip([*ended[len(bad) :], last], [*alone, alone[0]], strict=True):
            found = chunk.ids if isinstance(chunk, Chunk) else chunk
            assert found == expected.ids, f"beside bad requests a good one gave {found!r:.200}, alone {expected.ids}"

    def test_more_requests_than_slots_are_all_answered(self, bench: Bench) -> None:
        count = 3 * bench.capabilities.max_concurrency + 1
        prompts = bench.prompts()
        requests = [ask(prompts[number % len(prompts)], max_tokens=5 + number % 7) for number in range(min(count, 200))]
        for request, chunk in zip(requests, bench.complete(*requests), strict=True):
            assert len(chunk.ids) == request.sampling.max_tokens, "a request that had to wait was cut short"

    def test_a_request_that_is_given_up_frees_its_slot(self, bench: Bench) -> None:
        prompt = bench.prompts(1)[0]

        async def begun_and_closed() -> None:
            async with aclosing(bench.backend.generate(ask(prompt, stream=True))) as stream:
                await anext(stream)

        async def cancelled() -> None:
            reading = asyncio.ensure_future(read(bench.backend, ask(prompt)))
            await asyncio.sleep(0.01)
            reading.cancel()
            await asyncio.wait([reading])

        async def scenario() -> Chunk:
            slots = min(bench.capabilities.max_concurrency, 16)
            for _ in range(_ROUNDS):
                for give_up in (begun_and_closed, cancelled):
                    await asyncio.gather(*(give_up() for _ in range(slots + 1)))
            return await read(bench.backend, ask(prompt, max_tokens=3))

        chunk = bench.run(scenario(), "a request after others were given up")
        assert len(chunk.ids) == 3, f"after others were given up, 3 tokens were asked for: {chunk}"

    def test_it_serves_several_threads_and_loops_at_once(self, bench: Bench) -> None:
        prompts = bench.prompts(3)
        found: dict[int, object] = {}

        def use(number: int) -> None:
            try:
                found[number] = asyncio.run(read(bench.backend, ask(prompts[number], temperature=0, max_tokens=8))).ids
            except BaseException as error:
                found[number] = error

        threads = [threading.Thread(target=use, args=[number], daemon=True) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.timeout)
        expected = bench.complete(*(ask(prompt, temperature=0, max_tokens=8) for prompt in prompts))
        for number, chunk in enumerate(expected):
            told = f"asked from a thread and an event loop of its own, it gave {found.get(number, 'nothing')!r:.200}"
            assert found.get(number) == chunk.ids, f"{told}, and should have given {chunk.ids}"

    def _greedy(self, bench: Bench) -> Chunk:
        (chunk,) = bench.complete(ask(bench.prompts(1)[0], temperature=0, max_tokens=12))
        return chunk


def _long(bench: Bench, tokens: int) -> list[int]:
    """A prompt of ``tokens`` tokens."""
    ids = [token for prompt in bench.prompts() for token in prompt]
    return (ids * (tokens // len(ids) + 1))[:tokens]


def _end(chunk: Chunk) -> str:
    """How a completion says that it ended."""
    return f"finish={chunk.finish!r}, stop_string={chunk.stop_string!r}"
