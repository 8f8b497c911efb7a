"""Two real servers: what reaches the engines, what they keep of a session, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import httpx
import psutil
import pytest
from real import KEYS, START_S

from agentrl.errors import BackendError
from agentrl.inference.contract import Chunk, GenerationRequest, Sampling
from agentrl.testing.backends.bench import Bench, ask, build_backend, read, started_bench
from agentrl.testing.parts import model_folder
from agentrl_vllm.backend import VllmBackend

pytestmark = pytest.mark.real

EXACT = 1e-4
HANG_S = 45.0
LONG = 600
"""Tokens that take a server a second or more."""
TOGETHER = 6
HTTP = httpx.Client(trust_env=False, timeout=60)
"""Made once: that takes as long as a hundred tokens."""


@pytest.fixture(scope="module")
def served() -> Iterator[Bench]:
    keys = {**KEYS, "replicas": 2, "request_timeout": HANG_S, "args": ["--block-size", "32"]}

    def build(folder: Path) -> object:
        return build_backend("agentrl_vllm.backend:VllmBackend", keys, folder, concurrency=8)

    with HTTP, started_bench(build, model_folder("tiny"), timeout=START_S, start_timeout=START_S) as table:  # type: ignore[arg-type]
        yield table


def metric(served: Bench, name: str) -> list[float]:
    """What each server counts."""
    assert isinstance(served.backend, VllmBackend)
    texts = [HTTP.get(f"{replica.url}/metrics").text for replica in served.backend.replicas]
    return [sum(float(value) for value in re.findall(rf"^vllm:{name}{{.*}} (\S+)$", text, re.M)) for text in texts]


def eventually(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def states(served: Bench) -> list[str]:
    assert isinstance(served.backend, VllmBackend)
    return [replica.state for replica in served.backend.replicas]


def engines() -> list[psutil.Process]:
    """Those of the two servers. To look for them takes a while on a busy machine."""
    children = psutil.Process().children(recursive=True)
    found = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    assert len(found) == 2, [child.cmdline() for child in children]
    return found


def all_exact(served: Bench, prompts: Sequence[list[int]], chunks: Sequence[Chunk]) -> bool:
    return all(served.reference.off_by(*pair) < EXACT for pair in zip(prompts, chunks, strict=True))


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_given_up_ends_in_the_engine(stream: bool, served: Bench) -> None:
    prompt = served.prompts(1)[0]

    async def begun_and_left() -> None:
        requests = [ask(prompt, max_tokens=LONG, stream=stream, seed=number) for number in range(TOGETHER)]
        reading = [asyncio.ensure_future(read(served.backend, request)) for request in requests]
        while not sum(await asyncio.to_thread(metric, served, "num_requests_running")):
            assert not any(one.done() for one in reading), "they were sampled before anybody looked"
            await asyncio.sleep(0.01)
        for one in reading:
            one.cancel()
        await asyncio.wait(reading)

    before = sum(metric(served, "generation_tokens_total"))
    served.run(begun_and_left(), "requests that are given up")
    eventually(lambda: not sum(metric(served, "num_requests_running")), "the engine goes on")
    assert sum(metric(served, "generation_tokens_total")) - before < TOGETHER * LONG, "they were sampled to their ends"


def test_the_turns_of_a_session_are_answered_where_its_prefix_is(served: Bench) -> None:
    """Each of four sessions has a prompt of its own, so that another server's cache is of no use to it."""
    opening = served.prompts()[1]

    async def episode(number: int) -> None:
        prompt = [number + 5] * 32 + opening * 3
        for _ in range(4):
            request = GenerationRequest(prompt, Sampling(max_tokens=32, seed=number), session=f"session {number}")
            prompt = [*prompt, *(await read(served.backend, request)).ids, *opening]

    async def episodes() -> None:
        await asyncio.gather(*(episode(number) for number in range(4)))

    asked, hits = (sum(metric(served, f"prefix_cache_{name}_total")) for name in ("queries", "hits"))
    served.run(episodes(), "episodes")
    asked = sum(metric(served, "prefix_cache_queries_total")) - asked
    rate = (sum(metric(served, "prefix_cache_hits_total")) - hits) / asked
    assert rate > 0.5, f"of the tokens of multi-turn prompts, {rate:.0%} came from the prefix cache"
    assert min(metric(served, "request_success_total")) > 0, "one of the servers had nothing to do"


def test_twenty_alternatives_are_given(served: Bench) -> None:
    (compared, *_) = served.sample(top_logprobs=20, max_tokens=3)
    for position, alternatives in enumerate(compared.chunk.top_logprobs):
        best = compared.expected[position].topk(20).values.tolist()
        assert [logprob for _, logprob in alternatives] == pytest.approx(best, abs=EXACT)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_requests_of_a_server_that_dies_or_hangs_are_answered_and_it_comes_back(fault: int, served: Bench) -> None:
    prompts = served.prompts() * 2

    async def scenario() -> list[Chunk]:
        engine, _ = engines()
        requests = [ask(prompt, max_tokens=300, seed=number) for number, prompt in enumerate(prompts)]
        reading = [asyncio.ensure_future(read(served.backend, request)) for request in requests]
        await read(served.backend, ask(prompts[0], max_tokens=1))
        engine.send_signal(fault)
        return await asyncio.gather(*reading)

    eventually(lambda: states(served) == ["ready", "ready"], "both servers are there")
    assert all_exact(served, prompts, served.run(scenario(), "requests of which some lose their server"))
    eventually(lambda: states(served) == ["ready", "ready"], "the server that was lost did not come back")
    assert all_exact(served, prompts, served.complete(*(ask(prompt, max_tokens=8) for prompt in prompts)))


def test_a_stream_whose_server_dies_ends_with_an_error_and_not_in_silence(served: Bench) -> None:
    async def scenario() -> None:
        found = engines()
        # As many tokens as fit: a server must not be done before its engine is gone.
        request = ask(served.prompts(1)[0], stream=True)
        async with aclosing(served.backend.generate(request)) as stream:
            await anext(stream)
            for engine in found:
                engine.kill()
            async for _ in stream:
                pass

    eventually(lambda: states(served) == ["ready", "ready"], "both servers are there")
    with pytest.raises(BackendError):
        served.run(scenario(), "a stream whose server dies")
